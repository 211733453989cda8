// What the divided layers of one model share.
import { processState } from '../../core/context.ts';
import type { ProcessGroup } from '../../distributed/process_group.ts';
import type { Module } from '../../nn/module.ts';

/** The tensor-parallel group of a transformed model. */
export interface TensorParallel {
  readonly group: ProcessGroup;
  readonly rank: number;
  readonly size: number;
  /** Whether the rows between the layers are divided too: norms and residuals work on this rank's rows alone. */
  sequenceParallel: boolean;
  /** Whether rank 0 alone holds the weights: FSDP must then send them. */
  readonly loadsFromRank0: boolean;
}

const divided: WeakMap<Module, TensorParallel> = processState(
  'divided',
  'tensor-parallel groups, by model',
  new WeakMap(),
);

/** @internal `model` was divided. */
export function markDivided(model: Module, tp: TensorParallel): void {
  divided.set(model, tp);
}

/** Over which ranks transform divided `model`; undefined where it did not. */
export function tensorParallelOf(model: Module): TensorParallel | undefined {
  return divided.get(model);
}
