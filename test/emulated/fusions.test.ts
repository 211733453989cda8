// What a device runs as one op where others run several (src/tensor/fusions.ts): each takes the place of the ops that it should,
// and gives their results.
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { fusionNames, parseFusions } from '../../src/tensor/fusions.ts';
import { expectRanks } from '../multi/helpers.ts';
import { relative } from '../multi/reference_run.ts';
import { available, buildEmulated, nodeVariables } from './emulated.ts';

interface Result {
  losses: number[];
  norms: number[];
  calls: Record<string, number>;
  units: number;
}

const fixture = join(import.meta.dirname, 'fixtures/fusions.mjs');
const layers = 2;
const steps = 2;

async function train(fusions: readonly string[], options: object = {}, seed = 1): Promise<Result> {
  return (await trainRanks(1, fusions, options, seed))[0]!;
}

async function trainRanks(world: number, fusions: readonly string[], options: object, seed: number): Promise<Result[]> {
  const env = { ...nodeVariables(seed), RANKZERO_EMULATED_DEVICES: String(world) };
  const { stdout } = await expectRanks(world, fixture, { args: [JSON.stringify({ fusions, ...options })], env });
  return stdout.map((text) => JSON.parse(text.replace(/^RESULT /, '')));
}

function expectSame(got: Result, wanted: Result, tolerance = 2e-6): void {
  expect(got.losses.length).toBe(wanted.losses.length);
  expect(got.losses.length).toBeGreaterThanOrEqual(steps);
  for (const [i, loss] of got.losses.entries()) expect(relative(loss, wanted.losses[i]!)).toBeLessThan(tolerance);
  for (const [i, norm] of got.norms.entries()) expect(relative(norm, wanted.norms[i]!)).toBeLessThan(10 * tolerance);
}

describe.skipIf(!available)('fusions of the emulated device', () => {
  beforeAll(buildEmulated, 600_000);

  it.each([undefined, 'all'])('leave no sum of its own in a layer, checkpointed %s', async (checkpoint) => {
    const apart = await train([], { checkpoint });
    const fused = await train(['sums'], { checkpoint }, 2);
    // Two residuals, in checkpointing again in backward; there two residuals, two of three inputs, one of two.
    expect(apart.calls.add).toBe(steps * layers * (2 + 5 + (checkpoint ? 2 : 0)));
    expect(fused.calls.add ?? 0).toBe(0);
    expectSame(fused, apart);
  });

  it('spare a selective checkpoint the GEMMs before a sum that it keeps', async () => {
    const whole = await train(['sums'], { checkpoint: 'all' });
    const selective = await train(['sums'], { checkpoint: 'selective' }, 2);
    expect(whole.calls.attention_forward).toBe(2 * steps * layers);
    expect(selective.calls.attention_forward).toBe(steps * layers);
    expect(whole.calls.linear_forward! - selective.calls.linear_forward!).toBe(2 * steps * layers);
    expect({ ...selective, calls: {} }).toEqual({ ...whole, calls: {} });
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

  it.each([1, 2])('cast nothing in gathers but the first, and change no bit, %i ranks', async (world) => {
    const options = { mixedPrecision: { paramDtype: 'bfloat16', reduceDtype: 'float32' } };
    const apart = await trainRanks(world, [], options, 1);
    const fused = await trainRanks(world, ['casts'], options, 2);
    for (const [rank, { losses, norms, calls, units }] of fused.entries()) {
      expect({ losses, norms }).toEqual({ losses: apart[rank]!.losses, norms: apart[rank]!.norms });
      expect(calls.copy).toBe(units);
      expect(apart[rank]!.calls.copy).toBe(3 * units); // one a gather; two steps gather all, and what backward reads once more
      expect(calls.all_gather).toBe(apart[rank]!.calls.all_gather);
    }
  });

  const orders = ['zeroed', 'scaled', 'accumulated', 'unsharded', 'crossed', 'reversed', 'dropped'];
  it.each(['plain', ...orders])('write the gradient of the head in its place, to the bit, %s', async (order) => {
    const options = { order, tie_word_embeddings: order !== 'scaled' };
    const apart = await train([], options);
    const fused = await train(['sinks'], options, 2);
    expect({ ...fused, calls: {} }).toEqual({ ...apart, calls: {} });
    // A gradient of the loss that is known to be 1 multiplies nothing. One place serves one loss at a time.
    const scales = {
      plain: 0,
      zeroed: 0,
      scaled: 2,
      accumulated: 0,
      unsharded: 1,
      crossed: 2,
      reversed: 1,
      dropped: 0,
    };
    expect(fused.calls.scale ?? 0).toBe(steps * scales[order as keyof typeof scales]);
  });
});

it('RANKZERO_FUSIONS names them, and is an error where it does not', () => {
  expect([...parseFusions(undefined)]).toEqual(fusionNames);
  expect([...parseFusions('none')]).toEqual([]);
  expect([...parseFusions('sums')]).toEqual(['sums']);
  expect(() => parseFusions('sums,summs')).toThrow(/there is no "summs"; it is none, or some of sums/);
});
