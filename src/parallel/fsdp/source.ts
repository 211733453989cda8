// Who sends the weights while a model is wrapped, and whether it has them.
import type { ProcessGroup } from '../../distributed/process_group.ts';
import type { Parameter } from '../../nn/parameter.ts';
import type { ShardGroups } from './groups.ts';
import type { FsdpOptions } from './options.ts';
import type { PlannedUnit } from './units.ts';

export interface WeightSource {
  /** Its rank 0 sends: ranks of one replica, and of one tensor-parallel rank unless rank 0 alone has the weights. */
  readonly group: ProcessGroup;
  /** Whether this rank sends. */
  readonly isHere: boolean;
}

export function sourceOf(groups: ShardGroups, rank0HasAll: boolean): WeightSource {
  const group = rank0HasAll ? groups.grid : groups.shard;
  return { group, isHere: group.rank === 0 && groups.replicate.rank === 0 };
}

/** Error, before anything is sent: a parameter on meta that this rank should send. */
export function checkSource(planned: readonly PlannedUnit[], source: WeightSource, options: FsdpOptions): void {
  if (!options.syncModuleStates || options.paramInitFn || !source.isHere) return;
  for (const { parameters } of planned) refuseMeta(parameters);
}

/** @internal */
export function refuseMeta(parameters: readonly Parameter[]): void {
  const left = parameters.find((parameter) => parameter.device === 'meta');
  if (left) throw new Error(`FSDP: rank 0 must hold the weights that it sends, but ${left.name} is on meta`);
}
