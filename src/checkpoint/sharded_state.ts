// What a sharded checkpoint is made of on one rank. FSDP and optimizers give it; checkpoints know nothing else of them.
import type { Module } from '../nn/module.ts';
import type { Parameter } from '../nn/parameter.ts';
import type { BlockPiece } from '../nn/placement.ts';
import type { SliceRange } from '../nn/trainable_slice.ts';
import type { Shape, Tensor } from '../tensor/tensor.ts';

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

/** What a rank has of one kind of optimizer state of one parameter. */
export interface StateTensor {
  /** The name in a checkpoint, such as `exp_avg`. */
  readonly kind: string;
  readonly parameter: { readonly name: string; readonly owner: unknown };
  /** Of this state of the whole parameter, which may be another than the parameter's. */
  readonly shape: Shape;
  /** A view: whoever asked for it disposes it. */
  readonly values: Tensor;
  /** Where `values` are in the whole; padding is in no piece. */
  readonly pieces: readonly BlockPiece[];
  /** Those that this rank saves: no element is saved by two ranks. */
  readonly saved: readonly BlockPiece[];
  /** Every rank has all of it, and the first saves it. */
  readonly isReplicated?: boolean | undefined;
}

/** An optimizer's state of the parameters that are updated together. */
export interface ShardedOptimizerState {
  /** Updates taken. */
  readonly step: number;
  setStep(step: number): void;
  /** The parameters that have elements on some rank. */
  readonly parameters: readonly { readonly name: string }[];
  tensors(): readonly StateTensor[];
}

export interface ShardedOptimizer {
  /** As a checkpoint names it, such as `AdamW`. */
  readonly name: string;
  /** The kinds of state that it may have of a parameter, such as `exp_avg`. */
  readonly stateKinds: readonly string[];
  /** State of the parameters that have some; zeros are made for the others when `create`. */
  states(create?: boolean): Iterable<ShardedOptimizerState>;
}
