// Projections of one input as one GEMM (src/nn/joint_linears.ts): as many GEMMs as there should be, and the gradients of those apart.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { expectRanks } from '../multi/helpers.ts';
import { relative } from '../multi/reference_run.ts';
import { available, buildEmulated, nodeVariables } from './emulated.ts';

interface Result {
  losses: number[];
  /** By parameter; null where there is none. */
  gradients: Record<string, number[] | null>;
  calls: Record<string, number>;
  generated: number[] | undefined;
}

const fixture = join(import.meta.dirname, 'fixtures/projections.mjs');
const passes = 2;
const others = ['sums', 'casts', 'sinks'];

const qwen2 = { model_type: 'qwen2', use_sliding_window: false };
const bf16 = { paramDtype: 'bfloat16', reduceDtype: 'float32' };
const uneven = { hidden_size: 12, num_attention_heads: 2, num_key_value_heads: 1, intermediate_size: 9 };
type Settings = Record<string, unknown>;
/** With the GEMMs of one pass over two layers: forward, for gradients of inputs, for those of weights. Apart they are 7 a layer. */
const alone: [what: string, Settings, gemms: number[]][] = [
  ['of Llama', {}, [8, 8, 8]],
  ['with biases', qwen2, [8, 8, 8]],
  ['with biases everywhere', { attention_bias: true, mlp_bias: true }, [8, 8, 8]],
  ['with one head of keys', { num_attention_heads: 2, num_key_value_heads: 1 }, [8, 8, 8]],
  ['that run again', { checkpoint: 'all' }, [16, 8, 8]],
  ['that run again, selectively', { checkpoint: 'selective' }, [12, 8, 8]],
  ['in bfloat16', { mixedPrecision: bf16 }, [8, 8, 8]],
  ['whose gradients are kept whole', { variant: 'kept whole' }, [8, 8, 8]],
  ['in generation', { variant: 'generates' }, [8, 8, 8]],
  ['of experts, whose attention alone has them', { model_type: 'mixtral', num_local_experts: 2 }, [6, 6, 6]],
  ['one of which is used twice', { variant: 'used twice', num_key_value_heads: 4 }, [10, 10, 10]],
  ['with norms of heads', { model_type: 'qwen3', head_dim: 8 }, [12, 12, 12]],
  ['of which some run otherwise', { variant: 'hooked' }, [14, 14, 14]],
  ['of which some are frozen', { variant: 'frozen before' }, [14, 14, 10]],
  ['of which some are frozen later', { variant: 'frozen after' }, [14, 14, 10]],
  ['that are not wrapped', { variant: 'unwrapped' }, [14, 14, 14]],
  ['with gaps between them', uneven, [14, 14, 14]],
];
/** On two ranks, where the head is a GEMM of its own. */
const divided: typeof alone = [
  ['of parts of the heads', { tp: 2 }, [9, 9, 9]],
  ['of parts of heads that ranks share', { tp: 2, num_key_value_heads: 1 }, [13, 13, 13]],
];

/** What each rank finds of each setting. */
async function runAll(settings: Settings[], world: number, seed: number): Promise<Result[][]> {
  const env = { ...nodeVariables(seed), RANKZERO_EMULATED_DEVICES: String(world) };
  const args = [JSON.stringify(settings)];
  const { stdout, stderr } = await expectRanks(world, fixture, { args, env, timeout: 180_000 });
  // Nothing is said of those that run apart.
  expect(
    stderr
      .join('')
      .replaceAll(/==\d+==WARNING: ASan doesn't fully support makecontext.*?cases!/g, '')
      .trim(),
  ).toBe('');
  return stdout.map((text) => JSON.parse(text.replace(/^RESULT /, '')));
}

const norm = (values: number[]): number => Math.hypot(...values);

function judge(got: Result, wanted: Result, { mixedPrecision, variant }: Settings, gemms: number[]): void {
  const { losses, gradients, calls, generated } = got;
  expect(generated).toEqual(wanted.generated);
  expect(generated?.length).toBe(variant === 'generates' ? 8 : undefined);
  const ops = ['linear_forward', 'linear_backward_input', 'linear_backward_weight'];
  expect(ops.map((op) => calls[op]! / passes)).toEqual(gemms);
  expect(calls.copy ?? 0).toBe(wanted.calls.copy ?? 0); // nothing is moved to be joined
  expect(losses.length).toBe(passes);
  for (const [i, loss] of losses.entries()) expect(relative(loss, wanted.losses[i]!)).toBeLessThan(1e-6);
  expect(Object.keys(gradients)).toEqual(Object.keys(wanted.gradients));
  for (const [name, gradient] of Object.entries(gradients)) {
    const other = wanted.gradients[name]!;
    if (!gradient || !other) expect(gradient, name).toBe(other);
    else {
      const difference = norm(gradient.map((value, i) => value - other[i]!));
      expect(difference, name).toBeLessThanOrEqual((mixedPrecision ? 1e-2 : 2e-6) * norm(other));
    }
  }
}

describe.skipIf(!available)('projections of one input on the emulated device', () => {
  beforeAll(buildEmulated, 600_000);

  describe.each([
    [1, alone],
    [2, divided],
  ])('of %i ranks', (world, all) => {
    let apart: Result[][];
    let jointly: Result[][];
    beforeAll(async () => {
      const with_ = (fusions: string[]): Settings[] => all.map(([, settings]) => ({ fusions, ...settings }));
      apart = await runAll(with_(others), world, 1);
      jointly = await runAll(with_([...others, 'projections']), world, 2);
    }, 400_000);

    it.each(all.map(([what, settings, gemms], i) => [what, settings, gemms, i] as const))(
      '%s',
      (_, settings, gemms, i) => {
        expect(jointly.length).toBe(world);
        for (const [rank, results] of jointly.entries()) judge(results[i]!, apart[rank]![i]!, settings, gemms);
      },
    );
  });

  it.each([
    ['cuda', 'cpu'],
    ['cpu', 'cuda'],
  ])('lie in another order on devices, which checkpoints do not see: from %s to %s', async (first, second) => {
    const folder = await mkdtemp(join(tmpdir(), 'rankzero-order-'));
    const script = join(import.meta.dirname, 'fixtures/other_order.mjs');
    const one = async (device: string, verb: string): Promise<{ digest: string; loss: number; norm: number }[]> => {
      const env = device === 'cuda' ? { ...nodeVariables(3), RANKZERO_EMULATED_DEVICES: '2' } : {};
      const { stdout } = await expectRanks(2, script, { args: [device, verb, join(folder, 'saved')], env });
      return stdout.map((text) => JSON.parse(text.replace(/^RESULT /, '')));
    };
    try {
      const [saved, loaded] = [await one(first, 'save'), await one(second, 'load')];
      for (const [rank, { digest, loss, norm }] of loaded.entries()) {
        expect(digest).toBe(saved[rank]!.digest);
        expect(relative(loss, saved[rank]!.loss)).toBeLessThan(1e-6);
        expect(relative(norm, saved[rank]!.norm)).toBeLessThan(1e-5);
      }
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});
