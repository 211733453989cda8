// FSDP on real ranks against Transformers: every world size, strategy and flow gives the reference, and each other's losses.
import { describe, expect, it } from 'vitest';
import { llamaCases, trainingRun } from '../reference/cases.ts';
import { expectReference, relative, run, type Settings } from './reference_run.ts';

const baseline = new Map<string, number[]>();

function expectAgreement(name: string, losses: readonly number[]): void {
  const first = baseline.get(name) ?? [...losses];
  baseline.set(name, first);
  for (const [i, loss] of losses.entries()) expect(relative(loss, first[i]!), `loss ${i}`).toBeLessThan(1e-6);
}

describe.each(llamaCases)('%s, loaded by rank 0 alone', (name) => {
  it.each([1, 2, 3, 4])('equals Transformers on %i ranks', async (world) => {
    const settings: Settings = { name, world };
    const results = await run(settings);
    expectReference(results, settings);
    expectAgreement(name, results[0]!.losses);
  });
});

describe('strategies', () => {
  const settings: [string, Settings][] = [
    ['every rank loads', { name: 'llama', world: 2, flow: '0' }],
    ['every rank loads a tied model', { name: 'llama3-rope-tied', world: 3, flow: '0' }],
    ['SHARD_GRAD_OP', { name: 'llama', world: 2, shardingStrategy: 'SHARD_GRAD_OP' }],
    ['NO_SHARD', { name: 'llama', world: 2, shardingStrategy: 'NO_SHARD' }],
    ['HYBRID_SHARD 2×2', { name: 'llama', world: 4, shardingStrategy: 'HYBRID_SHARD', hybridShardDegree: 2 }],
    [
      '_HYBRID_SHARD_ZERO2 2×2',
      { name: 'llama-bias', world: 4, shardingStrategy: '_HYBRID_SHARD_ZERO2', hybridShardDegree: 2 },
    ],
    ['HYBRID_SHARD on a device mesh', { name: 'llama', world: 4, shardingStrategy: 'HYBRID_SHARD', mesh: [2, 2] }],
    ['FULL_SHARD on a device mesh', { name: 'llama', world: 2, mesh: [2] }],
    ['without prefetch', { name: 'llama', world: 2, prefetch: false }],
    ['without postParamInitFn', { name: 'llama3-rope-tied', world: 2, withoutPost: true }],
    ['activation checkpointing', { name: 'llama', world: 2, checkpoint: true }],
    ['accumulation inside noSync', { name: 'llama', world: 2, accumulate: 3 }],
    ['accumulation of reduced gradients', { name: 'llama', world: 2, accumulate: 3, noSync: false }],
    [
      'accumulation with replicas',
      { name: 'llama', world: 4, accumulate: 2, noSync: false, shardingStrategy: 'HYBRID_SHARD', hybridShardDegree: 2 },
    ],
    [
      'accumulation with NO_SHARD',
      { name: 'llama', world: 2, accumulate: 2, noSync: false, shardingStrategy: 'NO_SHARD' },
    ],
  ];
  it.each(settings)('%s equals Transformers', async (_, one) => {
    const results = await run(one);
    expectReference(results, one);
    expectAgreement(one.name, results[0]!.losses);
  });
});

describe('mixed precision', () => {
  it('stays near the float32 run, with float32 masters that agree on all ranks', async () => {
    const reference = trainingRun('llama');
    const results = await run({
      name: 'llama',
      world: 2,
      mixedPrecision: { paramDtype: 'bfloat16', reduceDtype: 'float32' },
    });
    for (const [i, loss] of results[0]!.losses.entries())
      expect(relative(loss, reference.losses[i]!)).toBeLessThan(2e-3);
    for (const { error } of Object.values(results[0]!.gradErrors)) expect(Math.sqrt(error)).toBeLessThan(2e-2);
    expect(results[1]!.digest).toBe(results[0]!.digest);
  });

  it.each(['llama', 'mixtral'])('gives %s the same bits with and without activation checkpointing', async (name) => {
    const mixedPrecision = { paramDtype: 'bfloat16' };
    const [plain, again] = [
      await run({ name, world: 2, mixedPrecision, steps: 3 }),
      await run({ name, world: 2, mixedPrecision, steps: 3, checkpoint: true }),
    ];
    expect(again[0]!.losses).toEqual(plain[0]!.losses);
    expect(again[0]!.digest).toBe(plain[0]!.digest);
  });
});
