// AdamW, one launch for each trainable slice: state lives beside the flat shard. Arithmetic is that of torch.optim.AdamW.
import { span } from '../core/recorder.ts';
import { NONE, native } from '../native.ts';
import { Parameter } from '../nn/parameter.ts';
import { type TrainableSlice, trainableSlices } from '../nn/trainable_slice.ts';
import { Tensor } from '../tensor/tensor.ts';
import type { Optimizer, SliceState } from './optimizer.ts';

export interface AdamWOptions {
  /** Default 1e-3. */
  lr?: number | undefined;
  /** Default [0.9, 0.999]. */
  betas?: readonly [number, number] | undefined;
  /** Default 1e-8. */
  eps?: number | undefined;
  /** Default 0.01. */
  weightDecay?: number | undefined;
  /** Which parameters decay. Default: those of two or more dimensions (no norms, no biases). */
  decays?: ((name: string, parameter: Parameter) => boolean) | undefined;
}

interface Slot {
  readonly slice: TrainableSlice;
  /** int64 [begin, end) pairs of elements that decay */
  readonly segments: Tensor | undefined;
  expAvg?: Tensor;
  expAvgSq?: Tensor;
  step: number;
}

export class AdamW implements Optimizer {
  lr: number;
  readonly betas: readonly [number, number];
  readonly eps: number;
  readonly weightDecay: number;
  private readonly slots: readonly Slot[];

  /** `parameters`: fsdp.namedParameters() or model.namedParameters(). Frozen parameters are left out. */
  constructor(parameters: Iterable<readonly [string, Parameter]>, options: AdamWOptions = {}) {
    this.lr = nonNegative('lr', options.lr ?? 1e-3);
    this.betas = options.betas ?? [0.9, 0.999];
    for (const beta of this.betas)
      if (!(beta >= 0 && beta < 1)) throw new RangeError(`AdamW: betas must be in [0, 1) but are [${this.betas}]`);
    this.eps = nonNegative('eps', options.eps ?? 1e-8);
    this.weightDecay = nonNegative('weightDecay', options.weightDecay ?? 0.01);
    const decays = options.decays ?? ((_: string, parameter: Parameter) => parameter.shape.length >= 2);
    const names = new Map<Parameter, string>();
    for (const [name, parameter] of parameters) {
      if (!(parameter instanceof Parameter))
        throw new TypeError('AdamW: give it namedParameters(), pairs of name and parameter');
      if (!names.has(parameter)) names.set(parameter, name);
    }
    this.slots = trainableSlices(names.keys()).map((slice) => {
      const decaying = [...slice.ranges()].filter(({ parameter }) => decays(nameOf(parameter, names), parameter));
      const segments = decaying.map(({ at, length }) => [at, at + length] as const);
      return { slice, segments: segmentTensor(segments, slice), step: 0 };
    });
    if (this.slots.length === 0) throw new Error('AdamW: there is no parameter to train');
  }

  /** Updates every parameter that has a gradient. Enqueues. */
  step(): void {
    span('optimizer', '', () => {
      for (const slot of this.slots) this.update(slot);
    });
  }

  private update(slot: Slot): void {
    const { slice, segments } = slot;
    using grad = slice.gradient();
    if (!grad) return;
    slot.step++;
    slice.beginWrite();
    if (slice.numel > 0) {
      const { expAvg, expAvgSq } = momentsOf(slot);
      using values = slice.values();
      using copy = slice.copy();
      native.adamw(
        values.handle,
        grad.handle,
        expAvg.handle,
        expAvgSq.handle,
        segments?.handle ?? NONE,
        slice.gradScale?.handle ?? NONE,
        copy?.handle ?? NONE,
        this.lr,
        this.betas[0],
        this.betas[1],
        this.eps,
        segments ? this.weightDecay : 0,
        slot.step,
      );
    }
    slice.markWritten();
  }

  /** Drops gradients. */
  zeroGrad(): void {
    for (const { slice } of this.slots) slice.zeroGrad();
  }

  /** @internal State of the slices that have some; zeros are made for the others when `create`. */
  states(create = false): SliceState[] {
    if (create) for (const slot of this.slots) momentsOf(slot);
    return this.slots.flatMap((slot) => {
      const { slice, step, expAvg, expAvgSq } = slot;
      if (!expAvg || !expAvgSq) return [];
      const setStep = (taken: number): void => {
        slot.step = taken;
      };
      return [{ slice, step, setStep, tensors: { exp_avg: expAvg, exp_avg_sq: expAvgSq } }];
    });
  }
}

function nameOf(parameter: Parameter, names: ReadonlyMap<Parameter, string>): string {
  return names.get(parameter) ?? parameter.name;
}

function momentsOf(slot: Slot): { expAvg: Tensor; expAvgSq: Tensor } {
  const { device, numel } = slot.slice;
  slot.expAvg ??= Tensor.zeros([numel], 'float32', 'optimizer', device);
  slot.expAvgSq ??= Tensor.zeros([numel], 'float32', 'optimizer', device);
  return { expAvg: slot.expAvg, expAvgSq: slot.expAvgSq };
}

function segmentTensor(
  segments: readonly (readonly [number, number])[],
  { device }: TrainableSlice,
): Tensor | undefined {
  if (segments.length === 0) return undefined;
  const pairs = BigInt64Array.from(segments.flat(), BigInt);
  return Tensor.from(pairs, [2 * segments.length], { dtype: 'int64', device });
}

function nonNegative(name: string, value: number): number {
  if (!(value >= 0)) throw new RangeError(`AdamW: ${name} must be at least 0 but is ${value}`);
  return value;
}
