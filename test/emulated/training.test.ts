// Training on emulated devices over the emulated NCCL: rank 0 loads, the others start on meta, and everything is as on CPU
// ranks: losses, norms, gradients, the whole state.
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { expectRanks } from '../multi/helpers.ts';
import { expectReference, relative, runAll, type Settings } from '../multi/reference_run.ts';
import { available, buildEmulated, nodeVariables, seeds } from './emulated.ts';

const settings: [seed: number, Settings][] = [
  [1, { name: 'llama', world: 1 }],
  [2, { name: 'llama', world: 2 }],
  [3, { name: 'llama', world: 2, ownRows: true, checkpoint: true, accumulate: 2, steps: 5 }],
  [4, { name: 'llama', world: 4, ownRows: true, steps: 5 }],
  [5, { name: 'llama', world: 4, ownRows: true, steps: 5, shardingStrategy: 'HYBRID_SHARD', hybridShardDegree: 2 }],
  [1, { name: 'llama', world: 2, flow: 'C', tp: 2, steps: 4 }],
  [2, { name: 'llama', world: 4, flow: 'C', tp: 2, steps: 4 }],
  [3, { name: 'qwen3', world: 4, flow: 'B', tp: 2, sequenceParallel: true, checkpoint: true, steps: 4 }],
  [4, { name: 'mixtral', world: 2, flow: 'C', tp: 2, steps: 4 }],
  [5, { name: 'mixtral', world: 2, ownRows: true, checkpoint: true, steps: 4 }],
];
const otherFamilies = [
  'gpt-neox',
  'gpt-neox-sequential',
  'llama3-rope-tied',
  'mistral-window',
  'qwen2',
  'qwen3-window',
];

/** What fixtures/gathers.mjs says; bytes. */
interface Gathers {
  losses: number[];
  gathered: number;
  gradients: number;
  units: number[];
}

/** What fixtures/ignored.mjs says: of each parameter, the sum of squares. */
interface Ignored {
  losses: number[];
  sums: [name: string, sum: number][];
}

describe.skipIf(!available)('training on emulated devices', () => {
  beforeAll(buildEmulated, 600_000);

  it.each(settings)('gives the losses of CPU ranks, seed %i, %o', async (seed, one) => {
    const [cpu] = await runAll([one]);
    const [cuda] = await runAll([{ ...one, device: 'cuda' }], nodeVariables(seed));
    if (!one.ownRows) expectReference(cuda!, one);
    expect(cuda!.length).toBe(one.world);
    for (const [rank, { losses, norms, digest }] of cuda!.entries()) {
      const wanted = cpu![rank]!;
      expect(losses.length).toBe(wanted.losses.length);
      for (const [i, loss] of losses.entries())
        expect(relative(loss, wanted.losses[i]!), `rank ${rank}: loss ${i}`).toBeLessThan(1e-6);
      for (const [i, norm] of norms.entries())
        expect(relative(norm, wanted.norms[i]!), `rank ${rank}: norm ${i}`).toBeLessThan(1e-5);
      expect(digest).toBe(cuda![0]!.digest);
    }
  });

  it('equals Transformers in every family', async () => {
    const all = otherFamilies.map((name): Settings => ({ name, world: 1, device: 'cuda', steps: 3 }));
    const results = await runAll(all, nodeVariables(3));
    for (const [i, one] of all.entries()) expectReference(results[i]!, one);
  });

  // The root has a few parameters of its own here. Blocks are a little larger than what was asked for.
  it('gathers two units at a time, and has two whole gradients, however far ahead the program is', async () => {
    const script = join(import.meta.dirname, 'fixtures/gathers.mjs');
    const results = async (device: string, env: Record<string, string> = {}): Promise<Gathers[]> => {
      const { stdout } = await expectRanks(2, script, { args: [device], env, timeout: 120_000 });
      return stdout.map((text) => JSON.parse(text.replace(/^RESULT /, '')));
    };
    const cpu = await results('cpu');
    for (const [rank, { losses, gathered, gradients, units }] of (await results('cuda', nodeVariables(4))).entries()) {
      for (const [i, loss] of losses.entries()) expect(relative(loss, cpu[rank]!.losses[i]!)).toBeLessThan(1e-6);
      const largest = Math.max(...units);
      const shards = units.reduce((sum, bytes) => sum + bytes, 0) / 2;
      expect(gathered / (2 * largest + units.at(-1)!)).toBeLessThan(1.01);
      // Two at a time, so that backward goes on while the one before is reduced.
      expect((gradients - shards) / largest).toBeGreaterThan(1.2);
      expect((gradients - shards) / largest).toBeLessThan(2);
    }
  });

  // The emulator holds a reduction of the second step back until two gathers are done that are enqueued after it.
  it.each(seeds)(
    'gathers do not wait for an earlier reduction, and ranks launch in one order, seed %i',
    async (seed) => {
      const script = join(import.meta.dirname, 'fixtures/gathers.mjs');
      const out = await mkdtemp(join(tmpdir(), 'rankzero-order-'));
      const env = {
        ...nodeVariables(seed),
        RANKZERO_EMULATED_HOLD_REDUCTION: `${14 + seed}:2`,
        RANKZERO_EMULATED_NCCL_LOG: join(out, 'calls-'),
        RANKZERO_TIMEOUT: '20',
      };
      try {
        await expectRanks(2, script, { args: ['cuda'], env, timeout: 120_000 });
        const files = await readdir(out);
        const [calls, others] = await Promise.all(files.map((name) => readFile(join(out, name), 'utf8')));
        expect(calls).toMatch(/AllGather \d+ of communicator 0\nReduceScatter \d+ of communicator 1\n/);
        expect(others).toBe(calls);
        expect(files.length).toBe(2);
      } finally {
        await rm(out, { recursive: true });
      }
    },
  );

  it.each([1, 2])('moves ignored modules to the device of each rank, seed %i', async (seed) => {
    const script = join(import.meta.dirname, 'fixtures/ignored.mjs');
    const out = await mkdtemp(join(tmpdir(), 'rankzero-ignored-'));
    const results = async (device: string, env: Record<string, string> = {}): Promise<Ignored[]> => {
      const { stdout } = await expectRanks(2, script, { args: [device, out], env, timeout: 120_000 });
      return stdout.map((text) => JSON.parse(text.replace(/^RESULT /, '')));
    };
    try {
      const [cpu, cuda] = [
        await results('cpu'),
        await results('cuda', { ...nodeVariables(seed), RANKZERO_EMULATED_DEVICES: '2' }),
      ];
      for (const [rank, { losses, sums }] of cuda.entries()) {
        for (const [i, loss] of losses.entries()) expect(relative(loss, cpu[rank]!.losses[i]!)).toBeLessThan(1e-6);
        for (const [i, [name, sum]] of sums.entries())
          expect(relative(sum, cpu[rank]!.sums[i]![1]), name).toBeLessThan(1e-5);
      }
    } finally {
      await rm(out, { recursive: true });
    }
  });

  // The bound that CPU ranks hold (test/multi/fsdp.test.ts): bfloat16 keeps 8 bits, and a loss is a mean over many roundings.
  it('in bfloat16 stays near the float32 run', async () => {
    const mixedPrecision = { paramDtype: 'bfloat16', reduceDtype: 'float32' };
    const one: Settings = { name: 'llama', world: 2, device: 'cuda', mixedPrecision, steps: 4 };
    const [[float32], [bfloat16]] = [
      await runAll([{ name: 'llama', world: 2 }]),
      await runAll([one], nodeVariables(1)),
    ];
    for (const { losses, digest, gradErrors } of bfloat16!) {
      for (const [i, loss] of losses.entries())
        expect(relative(loss, float32![0]!.losses[i]!), `loss ${i}`).toBeLessThan(2e-3);
      for (const [name, { error }] of Object.entries(gradErrors)) expect(Math.sqrt(error), name).toBeLessThan(2e-2);
      expect(digest).toBe(bfloat16![0]!.digest);
    }
  });
});
