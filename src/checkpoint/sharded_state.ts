// What a sharded checkpoint is made of on one rank. FSDP and optimizers give it; checkpoints know nothing else of them.
import type { Module } from '../nn/module.ts';
import type { Parameter } from '../nn/parameter.ts';
import type { SliceRange } from '../nn/trainable_slice.ts';
import type { Tensor } from '../tensor/tensor.ts';

/** A flat tensor of this rank, and which elements of which parameters it holds. Padding belongs to none. */
export interface HeldTensor {
  readonly values: Tensor;
  readonly ranges: readonly SliceRange[];
}

/** A model whose parameters are divided over ranks. */
export interface ShardedModel {
  readonly module: Module;
  /** This rank's file among those of one copy of the model; not written where another rank has the same. */
  readonly checkpointFile: { readonly index: number; readonly count: number; readonly isWritten: boolean };
  /** What a checkpoint holds: all parameters, or those that are trained where the others come from elsewhere (adapters). */
  savedParameters(): Iterable<Parameter>;
  /** What this rank holds of the saved parameters; those of ignored modules, which every rank has whole, are not among them. */
  heldTensors(): Iterable<HeldTensor>;
  /** Before the values are overwritten, on every rank. */
  beginWrite(): void;
  markWritten(): void;
}

/** An optimizer's state of the parameters that lie in one flat tensor. */
export interface ShardedOptimizerState {
  readonly step: number;
  setStep(step: number): void;
  /** Moments by the name that they have in the checkpoint. */
  readonly tensors: Readonly<Record<string, Tensor>>;
  readonly slice: { ranges(): Iterable<SliceRange>; readonly parameters: readonly { readonly name: string }[] };
}

export interface ShardedOptimizer {
  /** `create`: zeros are made where there is no state yet. */
  states(create?: boolean): Iterable<ShardedOptimizerState>;
}
