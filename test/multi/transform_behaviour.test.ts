// What users of transform rely on beside the numbers: fresh weights, what parameters are before the wrap, files, errors.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { caseDir } from '../reference/cases.ts';
import { expectRanks, fixture } from './helpers.ts';

const folder = mkdtempSync(join(tmpdir(), 'rankzero-transform-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

// biome-ignore lint/suspicious/noExplicitAny: whatever the case prints
type Said = { result?: any; error?: string };

async function say(
  world: number,
  what: string,
  settings: object = {},
  env: Record<string, string> = {},
): Promise<Said[]> {
  const { stdout } = await expectRanks(world, fixture('transform_behaviour.mjs'), {
    args: [what, JSON.stringify(settings)],
    env,
  });
  return stdout.map((text) => JSON.parse(/^RESULT (.*)$/m.exec(text)![1]!) as Said);
}

/** The tensors of a folder's one file. */
function tensorsOf(dir: string): Map<string, { shape: number[]; data: Buffer }> {
  const file = readFileSync(join(dir, 'model.safetensors'));
  const size = Number(file.readBigUInt64LE(0));
  type Header = Record<string, { shape: number[]; data_offsets: [number, number] }>;
  const header = JSON.parse(file.subarray(8, 8 + size).toString()) as Header;
  const { __metadata__, ...entries } = header;
  const start = 8 + size;
  return new Map(
    Object.entries(entries).map(
      ([
        key,
        {
          shape,
          data_offsets: [from, to],
        },
      ]) => [key, { shape, data: file.subarray(start + from, start + to) }],
    ),
  );
}

describe('fresh weights', () => {
  it.each(['llama', 'llama3-rope-tied', 'mixtral', 'gpt-neox'])(
    'of %s are the same bits for every world, degree and start',
    async (name) => {
      const digests: string[] = [];
      for (const [world, tp] of [
        [1, 1],
        [2, 1],
        [2, 2],
        [4, 1],
        [4, 2],
        [4, 4],
      ] as const) {
        for (const meta of [false, true]) {
          const said = await say(world, 'fresh', { name, tp, meta });
          for (const { result, error } of said) {
            expect(error).toBeUndefined();
            digests.push(result.digest);
          }
        }
      }
      expect(digests.length).toBe(2 * (1 + 2 + 2 + 4 + 4 + 4));
      expect(new Set(digests).size).toBe(1);
    },
  );
});

describe('before the wrap', () => {
  it('only the tensor-parallel group of rank 0 has values', async () => {
    const said = await say(4, 'beforeWrap');
    const results = said.map(({ result }) => result);
    expect(results.map(({ devices }) => devices)).toEqual([['cpu'], ['cpu'], ['meta'], ['meta']]);
    expect(results.map(({ writers }) => writers)).toEqual([['file', 'user'], ['receive', 'user'], ['none'], ['none']]);
    for (const { shape, fullShape } of results) {
      expect(shape).toEqual([65, 64]);
      expect(fullShape).toEqual([130, 64]);
    }
    const { data } = tensorsOf(caseDir('llama')).get('model.embed_tokens.weight')!;
    const row = (index: number): number[] => [0, 1, 2, 3].map((i) => data.readFloatLE(4 * (64 * index + i)));
    expect(results[0].values).toEqual(row(0));
    expect(results[1].values).toEqual(row(65));
    expect(new Set(results.map(({ buffer }) => buffer)).size).toBe(1);
  });

  it('models that every rank loaded wait for rank 0, without values', async () => {
    const results = (await say(4, 'beforeWrap', { everyRankLoads: true })).map(({ result }) => result);
    expect(results.map(({ devices }) => devices)).toEqual([['cpu'], ['cpu'], ['cpu'], ['cpu']]);
    expect(results[3].writers).toEqual(['receive']);
  });
});

describe('state dicts', () => {
  it('are those of the checkpoint, or this rank’s parts', async () => {
    const out = join(folder, 'saved');
    const said = await say(4, 'save', { tp: 4, out });
    const shapes = said.map(({ result }) => result.shapes);
    for (const one of shapes) {
      expect(one['model.embed_tokens.weight']).toEqual([33, 64]); // 130 tokens, padded to 132
      expect(one['model.layers.0.self_attn.q_proj.weight']).toEqual([16, 64]);
      expect(one['model.layers.0.self_attn.k_proj.weight']).toEqual([16, 64]); // two heads on four ranks
      expect(one['model.layers.0.self_attn.o_proj.weight']).toEqual([64, 16]);
      expect(one['model.norm.weight']).toEqual([64]);
    }
    expect(said.map(({ result }) => result.full > 0)).toEqual([true, false, false, false]);
    // The saved folder holds the bytes that were loaded: no padding, every head once.
    const [original, saved] = [tensorsOf(caseDir('llama')), tensorsOf(out)];
    expect([...saved.keys()].sort()).toEqual([...original.keys()].sort());
    for (const [key, { shape, data }] of original) {
      expect(saved.get(key)!.shape, key).toEqual(shape);
      expect(saved.get(key)!.data.equals(data), key).toBe(true);
    }
  });

  it('of shards are read back by every other division', { timeout: 120_000 }, async () => {
    for (const [saver, loaders] of [
      [{ world: 4, tp: 2 }, [1, 1, 2, 1, 2, 2, 4, 4]],
      [{ world: 4, tp: 4 }, [4, 2, 2, 2]],
      [{ world: 2, tp: 1 }, [4, 4, 4, 2]],
    ] as const) {
      const out = join(folder, `shards-${saver.world}-${saver.tp}`);
      const before = await say(saver.world, 'reshard', { tp: saver.tp, save: true, out });
      const { digest, losses } = before[0]!.result;
      for (let i = 0; i < loaders.length; i += 2) {
        const [world, tp] = [loaders[i]!, loaders[i + 1]!];
        for (const { result, error } of await say(world, 'reshard', { tp, out })) {
          expect(error).toBeUndefined();
          expect(result.loaded).toEqual({ step: 3 });
          expect(result.digest, `${saver.world}/${saver.tp} to ${world}/${tp}`).toBe(digest);
          // Moments too: the losses go on as they would have.
          for (const [step, loss] of result.losses.entries())
            expect(Math.abs(loss / losses[step] - 1)).toBeLessThan(1e-6);
        }
      }
    }
  });
});

describe('logits, and generation', () => {
  // Mixtral's loss counts the experts of the rows; the padding must not count.
  it.each([
    ['llama', 130],
    ['mixtral', 128],
  ] as const)('of %s are those of the whole model, also with rows that do not divide', async (name, vocab) => {
    const plain = (await say(1, 'logits', { name, tp: 1 }))[0]!.result;
    expect(plain.shape).toEqual([1, 7, vocab]);
    for (const [world, tp, sequenceParallel] of [
      [2, 2, false],
      [4, 4, false],
      [2, 2, true],
      [4, 4, true],
    ] as const) {
      for (const { result, error } of await say(world, 'logits', { name, tp, sequenceParallel })) {
        expect(error).toBeUndefined();
        expect(result.shape).toEqual(plain.shape);
        for (const [i, x] of result.logits.entries()) expect(Math.abs(x - plain.logits[i])).toBeLessThan(1e-6);
        expect(result.same).toBe(true);
        for (const loss of result.losses) expect(Math.abs(loss / plain.losses[0] - 1)).toBeLessThan(1e-6);
        expect(Math.abs(result.norm / plain.norm - 1)).toBeLessThan(1e-5);
        expect(result.generated).toEqual(plain.generated);
      }
    }
  });
});

describe('errors', () => {
  const cases: [string, number, object, RegExp][] = [
    [
      'notTransformed',
      2,
      {},
      /asked for the tensor-parallel degree 2, but the model is not divided; transform it first/,
    ],
    ['withoutSync', 2, {}, /only rank 0 holds the weights; wrap with syncModuleStates: true/],
    ['withoutSync', 2, { tp: 1 }, /only rank 0 holds the weights; wrap with syncModuleStates: true/],
    ['metaOnRank0', 2, {}, /rank 0 must hold every weight, but its model\.embed_tokens\.weight is on meta/],
    ['heads', 3, { tp: 3 }, /llama with tensor-parallel degree 3: the 4 attention heads do not divide by 3/],
    [
      'heads',
      4,
      { tp: 4, config: { num_attention_heads: 12, num_key_value_heads: 3, head_dim: 16 } },
      /degree 4: 3 key\/value heads neither divide by 4 nor can be replicated over 4 ranks/,
    ],
    [
      'heads',
      4,
      { tp: 4, config: { intermediate_size: 98 } },
      /the 98 output features of model\.layers\.0\.mlp\.gate_proj do not divide by 4/,
    ],
    ['heads', 2, { tp: 3 }, /the tensor-parallel degree 3 does not divide the 2 ranks; the nearest that do: 2/],
    [
      'heads',
      4,
      { tp: 2, hybridShardDegree: 4 },
      /the shard degree 4 does not divide the 2 data-parallel ranks \(4 ranks, tensor-parallel degree 2\)/,
    ],
    ['differentDegrees', 2, {}, /ranks ask for different degrees .*rank 0 for \[2,0\], rank 1 for \[1,0\]/],
    [
      'differentModels',
      2,
      {},
      /First difference, entry \d+: rank 0 has model\.layers\.0\.mlp\.gate_proj\.weight \[48,64\].*rank 1 has .*\[64,64\]/,
    ],
  ];
  it.each(cases)('%s on %i ranks %j', async (what, world, settings, message) => {
    for (const { error } of await say(world, what, settings)) expect(error).toMatch(message);
  });

  it('RANKZERO_DEBUG=1 compares what the ranks of a group are given', async () => {
    for (const { error } of await say(2, 'differentInputs', {}, { RANKZERO_DEBUG: '1' }))
      expect(error).toMatch(/ranks 0 and 1 share each layer .* but were given different inputIds/);
  });
});
