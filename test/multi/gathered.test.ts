// Ranks whose memory cannot be mapped, as on devices: shards of their own, gathered copies, scattered weights. The same bits.
import { expect, it } from 'vitest';
import { expectReference, runAll, type Settings } from './reference_run.ts';

const settings: Settings[] = [
  { name: 'llama', world: 1 },
  { name: 'llama', world: 2 },
  { name: 'llama', world: 2, flow: '0' },
  { name: 'llama3-rope-tied', world: 2, checkpoint: true },
  { name: 'mixtral', world: 2, accumulate: 2 },
  { name: 'llama', world: 2, shardingStrategy: 'SHARD_GRAD_OP' },
  { name: 'llama', world: 2, shardingStrategy: 'NO_SHARD' },
  { name: 'llama', world: 2, mixedPrecision: { paramDtype: 'bfloat16', reduceDtype: 'float32' } },
  { name: 'llama', world: 3 },
  { name: 'llama-bias', world: 4, shardingStrategy: 'HYBRID_SHARD', hybridShardDegree: 2 },
  { name: 'qwen2', world: 4, flow: 'C', tp: 2 },
  { name: 'gpt-neox', world: 4, flow: 'B', tp: 2 },
];

it.each([1, 2, 3, 4])('%i ranks give the bits of mapped ones', { timeout: 300_000 }, async (world) => {
  const these = settings.filter((one) => one.world === world);
  const results = await runAll(these.flatMap((one): Settings[] => [one, { ...one, gather: 'copy' }]));
  for (const [i, one] of these.entries()) {
    const [expected, got] = [results[2 * i]!, results[2 * i + 1]!];
    if (!one.mixedPrecision) expectReference(got, one);
    for (const [rank, { losses, norms, digest }] of got.entries())
      expect({ losses, norms, digest }, JSON.stringify(one)).toEqual({
        losses: expected[rank]!.losses,
        norms: expected[rank]!.norms,
        digest: expected[rank]!.digest,
      });
  }
});
