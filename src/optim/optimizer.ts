// What training and checkpoints ask of an optimizer.
import type { TrainableSlice } from '../nn/trainable_slice.ts';
import type { Tensor } from '../tensor/tensor.ts';

/** Optimizer state of one slice, for checkpoints. */
export interface SliceState {
  readonly slice: TrainableSlice;
  /** Updates taken. */
  readonly step: number;
  setStep(step: number): void;
  /** By name in a checkpoint, each with one element for each of the slice. */
  readonly tensors: Readonly<Record<string, Tensor>>;
}

export interface Optimizer {
  /** The learning rate of the next step. */
  lr: number;
  step(): void;
  zeroGrad(): void;
  /** @internal State of the slices that have some; zeros are made for the others when `create`. */
  states(create?: boolean): readonly SliceState[];
}
