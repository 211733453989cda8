// Saving a sharded model as a Hugging Face folder: unit by unit, written by rank 0; an error there is the same error everywhere.
import { onAllRanks } from '../../checkpoint/agree.ts';
import { openPretrained, type SaveOptions } from '../../checkpoint/save_pretrained.ts';
import { dist } from '../../distributed/index.ts';
import type { CausalLM } from '../../models/causal_lm.ts';
import { gatherPartsToFirst } from '../transform/merge.ts';
import type { FsdpUnit, UnitGroups } from './unit.ts';

/** Collective over all ranks. */
export async function saveFullPretrained(
  dir: string,
  model: CausalLM,
  units: readonly FsdpUnit[],
  groups: UnitGroups,
  options: SaveOptions,
): Promise<void> {
  const { shard, replicate, tensor } = groups;
  const merges = shard.rank === 0 && replicate.rank === 0;
  const writes = merges && (tensor?.rank ?? 0) === 0;
  const tensors = [...model.namedParameters()].map(([name, parameter]) => ({
    name,
    shape: parameter.fullShape,
    dtype: parameter.checkpointDtype ?? parameter.dtype,
  }));
  const what = `saving ${dir}`;
  const writer = await onAllRanks(dist.group, what, () =>
    writes ? openPretrained(dir, model, tensors, options) : undefined,
  );
  await onAllRanks(dist.group, what, async () => {
    // Replicas hold the same shards: one shard group gathers.
    if (replicate.rank !== 0) return;
    let failure: unknown;
    for (const unit of units) {
      using full = unit.gatherValues(); // after a failure too: the others gather
      if (!merges) continue;
      for (const { parameter, offset } of unit.layout.spans) {
        using part = full.slice(offset, parameter.shape);
        using whole = tensor && parameter.split ? gatherPartsToFirst(part, parameter.split, tensor) : part.detach();
        if (!writer || failure !== undefined) continue;
        try {
          writer.write(parameter.name, whole!);
        } catch (error) {
          failure = error;
        }
      }
      if (!writer || failure !== undefined) continue;
      try {
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
