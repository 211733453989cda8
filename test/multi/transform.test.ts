// Tensor parallelism on real ranks against Transformers: every family, degree and flow gives the reference.
import { describe, expect, it } from 'vitest';
import { familyCases } from '../reference/family.ts';
import { expectReference, type Result, relative, runAll, type Settings } from './reference_run.ts';

const degrees = [
  { tp: 1, shard: 1 },
  { tp: 2, shard: 1 },
  { tp: 1, shard: 2 },
  { tp: 2, shard: 2 },
  { tp: 4, shard: 1 },
];

/** Loss of step 0 of each case on one rank. */
const firstLoss = new Map<string, number>();

function judge(runs: Result[][], settings: Settings[]): void {
  for (const [i, results] of runs.entries()) {
    const { name } = settings[i]!;
    expectReference(results, settings[i]!);
    const loss = results[0]!.losses[0]!;
    firstLoss.set(name, firstLoss.get(name) ?? loss);
    expect(relative(loss, firstLoss.get(name)!), `${name}: first loss`).toBeLessThan(1e-6);
  }
}

describe.each(degrees)('tensor-parallel degree $tp, $shard shards', ({ tp, shard }) => {
  // Flows 0 and A have no transform.
  const flows = tp === 1 ? (['0', 'A', 'B', 'C'] as const) : (['B', 'C'] as const);
  it.each(flows)('flow %s equals Transformers for every family', { timeout: 300_000 }, async (flow) => {
    const settings = familyCases.map((name) => ({ name, world: tp * shard, tp, flow }));
    judge(await runAll(settings), settings);
  });
});

describe('together with', () => {
  const both = (more: Partial<Settings>, world = 2, tp = 2): Settings[] =>
    familyCases.map((name) => ({ name, world, tp, flow: 'C', ...more }));
  const settings: [string, Settings[]][] = [
    ['sequence parallelism', both({ sequenceParallel: true })],
    ['sequence parallelism on 4 ranks', both({ sequenceParallel: true }, 4, 4)],
    ['sequence parallelism and shards', both({ sequenceParallel: true }, 4)],
    ['activation checkpointing', both({ checkpoint: true })],
    ['checkpointing and sequence parallelism', both({ checkpoint: true, sequenceParallel: true })],
    ['accumulation inside noSync', both({ accumulate: 2 })],
    ['accumulation of reduced gradients', both({ accumulate: 2, noSync: false }, 4)],
    ['replicas', both({ hybridShardDegree: 1 }, 4)],
    ['SHARD_GRAD_OP', both({ shardingStrategy: 'SHARD_GRAD_OP' }, 4)],
  ];
  it.each(settings)('%s equals Transformers', { timeout: 300_000 }, async (_, all) => {
    judge(await runAll(all), all);
  });
});
