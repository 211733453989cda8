// SGD, one launch for each trainable slice. Arithmetic is that of torch.optim.SGD.
import type { StateTensor } from '../checkpoint/sharded_state.ts';
import { NONE, native } from '../native.ts';
import type { Parameter } from '../nn/parameter.ts';
import { Tensor } from '../tensor/tensor.ts';
import { elementwiseState } from './optimizer.ts';
import {
  type Decays,
  decayingSegments,
  matricesDecay,
  nonNegative,
  SliceOptimizer,
  type Slot,
} from './slice_optimizer.ts';

export interface SGDOptions {
  /** Default 1e-3. */
  lr?: number | undefined;
  /** Default 0: no momentum, and no state. */
  momentum?: number | undefined;
  /** What part of a gradient does not enter the momentum buffer, after the first. Default 0. */
  dampening?: number | undefined;
  /** Default false. */
  nesterov?: boolean | undefined;
  /** Times the parameter, added to the gradient. Default 0. */
  weightDecay?: number | undefined;
  /** Which parameters decay. Default: those of two or more dimensions (no norms, no biases). */
  decays?: Decays | undefined;
}

interface SGDSlot extends Slot {
  readonly segments: Tensor | undefined;
  buffer?: Tensor;
}

/** Mirrors `torch.optim.SGD`. */
export class SGD extends SliceOptimizer<SGDSlot> {
  readonly stateKinds: readonly string[] = ['momentum_buffer'];
  readonly momentum: number;
  readonly dampening: number;
  readonly nesterov: boolean;
  readonly weightDecay: number;

  /** `parameters`: fsdp.namedParameters() or model.namedParameters(). Frozen parameters are left out. */
  constructor(parameters: Iterable<readonly [string, Parameter]>, options: SGDOptions = {}) {
    const { decays = matricesDecay } = options;
    super('SGD', parameters, options.lr ?? 1e-3, (slice, named) => ({
      slice,
      segments: decayingSegments(slice, decays, named),
      step: 0,
    }));
    this.momentum = nonNegative(this.name, 'momentum', options.momentum ?? 0);
    this.dampening = options.dampening ?? 0;
    this.nesterov = options.nesterov ?? false;
    this.weightDecay = nonNegative(this.name, 'weightDecay', options.weightDecay ?? 0);
    if (this.nesterov && (this.momentum === 0 || this.dampening !== 0))
      throw new RangeError(
        `SGD: nesterov wants a momentum and no dampening, but they are ${this.momentum} and ${this.dampening}`,
      );
  }

  /** @internal */
  protected update(slot: SGDSlot, grad: Tensor): void {
    const { slice, segments } = slot;
    if (slice.numel === 0) return;
    const buffer = this.momentum === 0 ? undefined : bufferOf(slot);
    using values = slice.values();
    using copy = slice.copy();
    native.sgd(
      values.handle,
      grad.handle,
      buffer?.handle ?? NONE,
      segments?.handle ?? NONE,
      slice.gradScale?.handle ?? NONE,
      copy?.handle ?? NONE,
      this.lr,
      this.momentum,
      this.dampening,
      segments ? this.weightDecay : 0,
      this.nesterov,
      slot.step,
    );
  }

  /** @internal */
  protected stateOf(slot: SGDSlot, create: boolean): (() => readonly StateTensor[]) | undefined {
    if (this.momentum === 0 || (!slot.buffer && !create)) return undefined;
    const buffer = bufferOf(slot);
    return () => elementwiseState('momentum_buffer', buffer, slot.slice.ranges());
  }
}

function bufferOf(slot: SGDSlot): Tensor {
  const { device, numel } = slot.slice;
  slot.buffer ??= Tensor.zeros([numel], 'float32', 'optimizer', device);
  return slot.buffer;
}
