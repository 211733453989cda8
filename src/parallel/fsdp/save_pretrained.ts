// Saving a sharded model as a Hugging Face folder: unit by unit, written by rank 0; an error there is the same error everywhere.
import { onAllRanks } from '../../checkpoint/agree.ts';
import { openPretrained, type SaveOptions } from '../../checkpoint/save_pretrained.ts';
import { dist } from '../../distributed/index.ts';
import type { CausalLM } from '../../models/causal_lm.ts';
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
  const what = `saving ${dir}`;
  const writer = await onAllRanks(dist.group, what, () =>
    writes ? openPretrained(dir, model, tensors, options) : undefined,
  );
  await onAllRanks(dist.group, what, async () => {
    // Replicas hold the same shards: one shard group gathers.
    if (groups.replicate.rank !== 0) return;
    let failure: unknown;
    for (const unit of units) {
      using full = unit.gather(unit.shard); // after a failure too: the others gather
      if (!writer || failure !== undefined) continue;
      try {
        for (const { parameter, offset } of unit.layout.spans) {
          using values = full.slice(offset, parameter.shape);
          writer.write(parameter.name, values);
        }
        await writer.drain();
      } catch (error) {
        failure = error;
      }
    }
    try {
      if (failure !== undefined) throw failure;
      await writer?.finish();
    } catch (error) {
      await writer?.abort();
      throw error;
    }
  });
}
