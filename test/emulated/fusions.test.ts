// What a device runs as one op where others run several (src/tensor/fusions.ts): each takes the place of the ops that it should,
// and gives their results.
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { fusionNames, parseFusions } from '../../src/tensor/fusions.ts';
import { relative } from '../multi/reference_run.ts';
import { available, buildEmulated, runNode } from './emulated.ts';

interface Result {
  losses: number[];
  norms: number[];
  calls: Record<string, number>;
}

const fixture = join(import.meta.dirname, 'fixtures/fusions.mjs');
const layers = 2;
const steps = 2;

async function train(fusions: readonly string[], options: object = {}, seed = 1): Promise<Result> {
  const { code, stdout, stderr } = await runNode([fixture, JSON.stringify({ fusions, ...options })], seed);
  expect(code, stderr).toBe(0);
  return JSON.parse(stdout);
}

function expectSame(got: Result, wanted: Result, tolerance = 2e-6): void {
  expect(got.losses.length).toBe(steps);
  for (const [i, loss] of got.losses.entries()) expect(relative(loss, wanted.losses[i]!)).toBeLessThan(tolerance);
  for (const [i, norm] of got.norms.entries()) expect(relative(norm, wanted.norms[i]!)).toBeLessThan(10 * tolerance);
}

describe.skipIf(!available)('fusions of the emulated device', () => {
  beforeAll(buildEmulated, 600_000);

  it.each([false, true])('leave no sum of its own in a layer, checkpointed %s', async (checkpoint) => {
    const apart = await train([], { checkpoint });
    const fused = await train(['sums'], { checkpoint }, 2);
    // Two residuals, in checkpointing again in backward; there two residuals, two of three inputs, one of two.
    expect(apart.calls.add).toBe(steps * layers * (2 + 5 + (checkpoint ? 2 : 0)));
    expect(fused.calls.add ?? 0).toBe(0);
    expectSame(fused, apart);
  });

  it.each(['gpt_neox', 'mixtral'])('of sums leave those between other ops in %s', async (model) => {
    const config =
      model === 'mixtral'
        ? { model_type: model, num_local_experts: 4, num_experts_per_tok: 2 }
        : { model_type: model, num_key_value_heads: 2 };
    const [apart, fused] = [await train([], config), await train(['sums'], config, 3)];
    expect(fused.calls.add).toBeLessThan(apart.calls.add!);
    expectSame(fused, apart);
  });
});

it('RANKZERO_FUSIONS names them, and is an error where it does not', () => {
  expect([...parseFusions(undefined)]).toEqual(fusionNames);
  expect([...parseFusions('none')]).toEqual([]);
  expect([...parseFusions('sums')]).toEqual(['sums']);
  expect(() => parseFusions('sums,summs')).toThrow(/there is no "summs"; it is none, or some of sums/);
});
