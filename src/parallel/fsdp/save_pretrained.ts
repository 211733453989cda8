// Saving a sharded model as a Hugging Face folder: unit by unit, then what FSDP ignores, written by rank 0; an error there is the
// same error everywhere.

import {
  openPretrained,
  type PretrainedFolder,
  type PretrainedWriter,
  type SaveOptions,
} from '../../checkpoint/save_pretrained.ts';
import { onAllRanks } from '../../distributed/agree.ts';
import { dist } from '../../distributed/index.ts';
import type { Module } from '../../nn/module.ts';
import type { Parameter } from '../../nn/parameter.ts';
import type { Tensor } from '../../tensor/tensor.ts';
import { gatherPartsToFirst } from '../tensor/merge.ts';
import type { ShardGroups } from './groups.ts';
import type { FsdpUnit } from './unit.ts';

/** Collective over all ranks. */
export async function saveFullPretrained(
  dir: string,
  model: Module & PretrainedFolder,
  units: readonly FsdpUnit[],
  groups: ShardGroups,
  options: SaveOptions,
): Promise<void> {
  const { shard, replicate, tensor } = groups;
  const merges = shard.rank === 0 && replicate.rank === 0;
  const holdsFile = merges && (tensor?.rank ?? 0) === 0;
  const tensors = [...model.namedParameters()].map(([name, parameter]) => ({
    name,
    shape: parameter.fullShape,
    dtype: parameter.checkpointDtype ?? parameter.dtype,
  }));
  const what = `saving ${dir}`;
  const writer = await onAllRanks(dist.group, what, () =>
    holdsFile ? openPretrained(dir, model, tensors, options) : undefined,
  );
  await onAllRanks(dist.group, what, async () => {
    // Replicas hold the same shards: one shard group gathers.
    if (replicate.rank !== 0) return;
    let failure: unknown;
    const attempt = async (write: (to: PretrainedWriter) => unknown): Promise<void> => {
      if (!writer || failure !== undefined) return;
      try {
        await write(writer);
      } catch (error) {
        failure = error;
      }
    };
    const save = async (parameter: Parameter, part: Tensor): Promise<void> => {
      using whole = tensor ? gatherPartsToFirst(part, parameter.placement, tensor) : part.detach();
      await attempt((to) => to.write(parameter.name, whole!));
    };
    for (const { buckets } of units) {
      for (const bucket of buckets) {
        using full = bucket.gatherValues(); // after a failure too: the others gather
        if (!merges) continue;
        for (const { parameter, offset } of bucket.layout.spans) {
          using part = full.slice(offset, parameter.shape);
          await save(parameter, part);
        }
      }
      if (merges) await attempt((to) => to.drain());
    }
    for (const parameter of merges ? model.parameters() : []) {
      if (parameter.owner) continue;
      using part = parameter.detach();
      await save(parameter, part);
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
