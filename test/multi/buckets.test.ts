// What is frozen takes its shard of memory and nothing else; dtypes have buckets of their own; replicas are compared.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { expectRanks, fixture } from './helpers.ts';

interface Result {
  rank: number;
  numel: number;
  trained: number;
  losses: number[];
  norm: number;
  optimizer: number;
  gradientPeak: number;
  reductions: { calls: number; bytes: number };
  buckets: string[][];
  changed: string[];
  local: { here: number; elsewhere: number; again: number };
  localProblem: string;
  mixed: { codes: number[]; dtypes: [string, string][]; buckets: [string, boolean][]; moments: number; sum: number };
  replicas?: string[];
}

const run = async (world: number): Promise<Result[]> =>
  (await expectRanks(world, fixture('buckets.mjs'))).stdout.map((text) => JSON.parse(text));

let alone: Result;
let pair: Result[];
let four: Result[];
beforeAll(async () => {
  [alone] = (await run(1)) as [Result];
  pair = await run(2);
  four = await run(4);
});

describe('a model of which a hundredth is trained', () => {
  it('has optimizer state for that alone, equally on all ranks', () => {
    expect(alone.trained / alone.numel).toBeLessThan(0.0125);
    expect(alone.optimizer).toBeGreaterThanOrEqual(8 * alone.trained);
    for (const results of [pair, four]) {
      const bytes = results.map(({ optimizer }) => optimizer);
      expect(Math.max(...bytes) / Math.min(...bytes)).toBeLessThan(1.1);
      expect(Math.max(...bytes)).toBeLessThan((1.1 * 8 * alone.trained) / results.length);
    }
  });

  it('has gradients and reductions for that alone', () => {
    for (const { gradientPeak, trained, reductions, buckets } of [...pair, ...four]) {
      // The whole gradient and this rank's shard of it; before, every unit that backward came to had one.
      expect(gradientPeak).toBeLessThan(2 * 4 * trained);
      // All of the float32 gradient of the trained bucket, which needs no padding, in each step.
      expect(reductions).toEqual({ calls: 3, bytes: 3 * 4 * trained });
      expect(buckets.flat().filter((use) => use === 'trained').length).toBe(1);
    }
  });

  it('learns as one process does, and leaves what is frozen', () => {
    for (const { losses, norm, changed } of [...pair, ...four]) {
      for (const [i, loss] of losses.entries()) expect(Math.abs(loss / alone.losses[i]! - 1)).toBeLessThan(1e-6);
      expect(Math.abs(norm / alone.norm - 1)).toBeLessThan(1e-5);
      expect(losses[2]).toBeLessThan(losses[0]!);
      expect(changed).toEqual(['model.layers.2.self_attn.k_proj.weight']);
    }
  });
});

describe('a unit of several dtypes', () => {
  it('has a bucket for each, frozen integers too, and sends them', () => {
    for (const { mixed } of [alone, ...pair, ...four]) {
      expect(mixed.codes).toEqual(Array.from({ length: 35 }, (_, i) => 7 * i));
      expect(Object.fromEntries(mixed.dtypes)).toEqual({
        codes: 'uint8',
        'a.weight': 'float32',
        'b.weight': 'bfloat16',
      });
      expect(mixed.buckets).toEqual([
        ['float32', true],
        ['bfloat16', true],
        ['uint8', false],
      ]);
      expect(mixed.moments).toBe(2);
      expect(mixed.sum).toBeCloseTo(alone.mixed.sum, 5);
    }
  });
});

it('takes a local state dict back, and refuses one that does not fit', () => {
  for (const { local, localProblem } of [alone, ...pair, ...four]) {
    expect(local.elsewhere).not.toBe(local.here);
    expect(local.again).toBe(local.here);
    expect(localProblem).toMatch(/has 1 elements of float32, but \d+ of float32 are wanted; there is no unit nowhere/);
  }
});

it('names the first parameter of which replicas differ, on every rank', () => {
  for (const [results, last, first] of [
    [pair, '0 and 1', '0 and 1'],
    [four, '1 and 3', '0 and 2'],
  ] as const)
    for (const { replicas } of results)
      expect(replicas).toEqual([
        `replicas differ: model.layers.3.mlp.down_proj.weight is not the same on ranks ${last}`,
        `replicas differ: model.layers.3.mlp.down_proj.weight is not the same on ranks ${last}`,
        `replicas differ: model.embed_tokens.weight is not the same on ranks ${first}`,
      ]);
});

it.each([
  [1, 1],
  [4, 1],
  [4, 2],
])(
  'a parameter of 16 elements is trained, and one that no plan placed is saved once, on %i ranks, tp %i',
  async (world, tp) => {
    const dir = await mkdtemp(join(tmpdir(), 'rankzero-few-'));
    try {
      const args = [join(dir, 'checkpoint'), String(tp)];
      const { stdout } = await expectRanks(world, fixture('few_elements.mjs'), { args });
      for (const text of stdout) {
        const { losses, extra, tpRank } = JSON.parse(text);
        expect(losses[1]).not.toBe(losses[0]);
        expect(losses[3]).toBe(losses[2]); // the same step again, from the checkpoint
        expect(extra).toEqual([tpRank === 0]);
      }
    } finally {
      await rm(dir, { recursive: true });
    }
  },
);
