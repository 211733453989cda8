// What optimizers over trainable slices have in common: one slot of state for each slice, and which parameters decay.
import type { ShardedOptimizerState, StateTensor } from '../checkpoint/sharded_state.ts';
import { span } from '../core/recorder.ts';
import { Parameter } from '../nn/parameter.ts';
import { type TrainableSlice, trainableSlices } from '../nn/trainable_slice.ts';
import { Tensor } from '../tensor/tensor.ts';
import type { Optimizer } from './optimizer.ts';

/** Which parameters decay. */
export type Decays = (name: string, parameter: Parameter) => boolean;

/** @internal What an optimizer keeps of one slice. */
export interface Slot {
  readonly slice: TrainableSlice;
  /** Updates taken. */
  step: number;
}

/** @internal Names of an optimizer and of its parameters. */
export interface Named {
  readonly optimizer: string;
  nameOf(parameter: Parameter): string;
}

/** The base of the optimizers here. A program gives `namedParameters()`; frozen parameters are left out. */
export abstract class SliceOptimizer<S extends Slot> implements Optimizer {
  readonly name: string;
  abstract readonly stateKinds: readonly string[];
  lr: number;
  /** @internal */
  protected readonly slots: readonly S[];

  /** @internal */
  protected constructor(
    name: string,
    parameters: Iterable<readonly [string, Parameter]>,
    lr: number,
    makeSlot: (slice: TrainableSlice, named: Named) => S,
  ) {
    this.name = name;
    this.lr = nonNegative(name, 'lr', lr);
    const names = new Map<Parameter, string>();
    for (const [key, parameter] of parameters) {
      if (!(parameter instanceof Parameter))
        throw new TypeError(`${name}: give it namedParameters(), pairs of name and parameter`);
      if (!names.has(parameter)) names.set(parameter, key);
    }
    const named: Named = { optimizer: name, nameOf: (parameter) => names.get(parameter) ?? parameter.name };
    this.slots = trainableSlices(names.keys()).map((slice) => makeSlot(slice, named));
    if (this.slots.length === 0) throw new Error(`${name}: there is no parameter to train`);
  }

  /** Updates every parameter that has a gradient. Enqueues. */
  step(): void {
    span('optimizer', '', () => {
      for (const slot of this.slots) this.updateSlot(slot);
    });
  }

  private updateSlot(slot: S): void {
    const { slice } = slot;
    using grad = slice.gradient();
    if (!grad) return;
    slot.step++;
    slice.beginWrite();
    this.update(slot, grad);
    slice.markWritten();
  }

  /** @internal Writes the values of a slice, and their copy; `slot.step` counts this update. Called on every rank, if it has elements or not. */
  protected abstract update(slot: S, grad: Tensor): void;

  /** Drops gradients. */
  zeroGrad(): void {
    for (const { slice } of this.slots) slice.zeroGrad();
  }

  /** @internal State of one slot by parameter; undefined where there is none yet, unless it is to be made. */
  protected abstract stateOf(slot: S, create: boolean): (() => readonly StateTensor[]) | undefined;

  /** @internal */
  states(create = false): ShardedOptimizerState[] {
    return this.slots.flatMap((slot) => {
      const tensors = this.stateOf(slot, create);
      if (!tensors) return [];
      const setStep = (taken: number): void => {
        slot.step = taken;
      };
      return [{ step: slot.step, setStep, parameters: slot.slice.parameters, tensors }];
    });
  }
}

/** @internal By default matrices decay, and norms and biases do not. */
export const matricesDecay: Decays = (_, parameter) => parameter.shape.length >= 2;

/** @internal int64 [begin, end) pairs of the elements that decay; undefined where none do. */
export function decayingSegments(slice: TrainableSlice, decays: Decays, named: Named): Tensor | undefined {
  const segments = [...slice.ranges()]
    .filter(({ parameter }) => decays(named.nameOf(parameter), parameter))
    .flatMap(({ at, length }) => [at, at + length]);
  if (segments.length === 0) return undefined;
  return Tensor.from(BigInt64Array.from(segments, BigInt), [segments.length], { dtype: 'int64', device: slice.device });
}

/** @internal */
export function nonNegative(optimizer: string, name: string, value: number): number {
  if (!(value >= 0)) throw new RangeError(`${optimizer}: ${name} must be at least 0 but is ${value}`);
  return value;
}
