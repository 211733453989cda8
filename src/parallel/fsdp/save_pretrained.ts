// Saving a sharded model as a Hugging Face folder: unit by unit, written by rank 0; an error there is the same error everywhere.
import { openPretrained, type SaveOptions } from '../../checkpoint/save_pretrained.ts';
import { dist } from '../../distributed/index.ts';
import type { CausalLM } from '../../models/causal_lm.ts';
import { computeStream, StreamEvent } from '../../tensor/streams.ts';
import type { FsdpUnit, UnitGroups } from './unit.ts';

/** Collective over all ranks. */
export async function saveFullPretrained(
  dir: string,
  model: CausalLM,
  units: readonly FsdpUnit[],
  groups: UnitGroups,
  options: SaveOptions,
): Promise<void> {
  const writes = groups.shard.rank === 0 && groups.replicate.rank === 0;
  const tensors = [...model.namedParameters()].map(([name, parameter]) => ({
    name,
    shape: parameter.shape,
    dtype: parameter.checkpointDtype ?? parameter.dtype,
  }));
  let failure: unknown;
  const attempt = async (fn: () => Promise<void>): Promise<void> => {
    if (failure !== undefined || !writes) return;
    try {
      await fn();
    } catch (error) {
      failure = error;
    }
  };
  let writer: Awaited<ReturnType<typeof openPretrained>> | undefined;
  await attempt(async () => {
    writer = await openPretrained(dir, model, tensors, options);
  });
  await agree(failure);
  // Replicas hold the same shards: one shard group gathers.
  if (groups.replicate.rank === 0) {
    for (const unit of units) {
      using full = unit.gather(unit.shard);
      await attempt(async () => {
        for (const { parameter, offset } of unit.layout.spans) {
          using values = full.slice(offset, parameter.shape);
          writer!.write(parameter.name, values);
        }
        const written = new StreamEvent(computeStream);
        await written.wait();
        written.dispose();
      });
    }
  }
  await attempt(() => writer!.finish());
  if (failure !== undefined) await writer?.abort();
  await agree(failure);
}

/** Rank 0 tells whether it failed; then all ranks throw. */
async function agree(failure: unknown): Promise<void> {
  const group = dist.group;
  const own =
    group.rank === 0
      ? new TextEncoder().encode(failure === undefined ? '' : String((failure as Error).message ?? failure))
      : undefined;
  const message = new TextDecoder().decode(group.broadcastBytes(own, 0));
  if (failure !== undefined) throw failure;
  if (message) throw new Error(`rank 0 failed to save: ${message}`);
}
