// Tensor parallelism on real ranks against Transformers: every family, degree and flow gives the reference.
import { describe, expect, it } from 'vitest';
import { trainingRun } from '../reference/cases.ts';
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
    ['two replicas of two shards', both({ hybridShardDegree: 2 }, 4, 1)],
    ['SHARD_GRAD_OP', both({ shardingStrategy: 'SHARD_GRAD_OP' }, 4)],
  ];
  it.each(settings)('%s equals Transformers', { timeout: 300_000 }, async (_, all) => {
    judge(await runAll(all), all);
  });
});

/** Two replicas of two shards of `tp` tensor-parallel ranks, the last fastest. */
function placeOf(rank: number, world: number, tp: number): Result['place'] {
  const half = world / 2;
  const [replica, shard, tensor] = [Math.floor(rank / half), Math.floor(rank / tp) % 2, rank % tp];
  const shards = [0, tp].map((at) => replica * half + at + tensor);
  return {
    sizes: { rank, worldSize: world, shardRank: shard, shardSize: 2, replicateRank: replica, replicateSize: 2 },
    replicas: [rank % half, (rank % half) + half],
    loss: Array.from({ length: world / tp }, (_, i) => i * tp + tensor),
    experts: { expertShard: shards, expert: [rank] },
    shardIsExpertShard: true,
  };
}

// Every data-parallel rank trains on a row of its own: as many labels in each, so the mean over ranks is the reference's.
describe('replicas of shards, by init({ hybridShardDegree: 2 }),', () => {
  it.each([
    [4, 1],
    [8, 2],
  ])(
    'on %i ranks with tensor-parallel degree %i learn what one process does',
    { timeout: 300_000 },
    async (world, tp) => {
      const names = ['llama', 'gpt-neox', 'llama3-rope-tied', 'qwen3'];
      const settings = names.map(
        (name): Settings => ({ name, world, tp, flow: 'C', hybridShardDegree: 2, ownRows: true }),
      );
      const runs = await runAll(settings);
      for (const { rank, place } of runs[0]!) expect(place).toEqual(placeOf(rank, world, tp));
      for (const [i, results] of runs.entries()) {
        const { losses, grad_norms } = trainingRun(names[i]!);
        for (const [step, wanted] of losses.entries()) {
          const mean = results.reduce((sum, result) => sum + result.losses[step]!, 0) / world;
          expect(relative(mean, wanted), `${names[i]}: loss ${step}`).toBeLessThan(1e-5);
        }
        for (const { norms, digest } of results) {
          for (const [step, norm] of norms.entries())
            expect(relative(norm, grad_norms[step]!), `${names[i]}: norm ${step}`).toBeLessThan(1e-5);
          expect(digest).toBe(results[0]!.digest);
        }
      }
    },
  );
});
