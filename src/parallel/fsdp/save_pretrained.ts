// Saving a sharded model as a Hugging Face folder.
import { openPretrained, type PretrainedFolder, type SaveOptions } from '../../checkpoint/save_pretrained.ts';
import { ownParametersOf } from '../../nn/lora.ts';
import type { Module } from '../../nn/module.ts';
import type { ShardGroups } from './groups.ts';
import { saveParameters } from './save_parameters.ts';
import { refuseQuantized } from './state_dict.ts';
import type { FsdpUnit } from './unit.ts';

/** Written by rank 0, unit by unit, then what FSDP ignores. Collective over all ranks. */
export async function saveFullPretrained(
  dir: string,
  model: Module & PretrainedFolder,
  units: readonly FsdpUnit[],
  groups: ShardGroups,
  options: SaveOptions,
): Promise<void> {
  refuseQuantized(
    units.flatMap((unit) => unit.buckets),
    'is not saved',
  );
  const own = [...ownParametersOf(model)];
  const tensors = own.map(([name, parameter]) => ({
    name,
    shape: parameter.fullShape,
    dtype: parameter.checkpointDtype ?? parameter.dtype,
  }));
  const names = new Map(own.map(([name, parameter]) => [parameter, name] as const));
  await saveParameters(`saving ${dir}`, names, () => openPretrained(dir, model, tensors, options), units, groups);
}
