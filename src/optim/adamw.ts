// AdamW, one launch for each trainable slice: state lies beside the flat shard. Arithmetic is that of torch.optim.AdamW.
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
  decays?: Decays | undefined;
}

/** @internal */
export interface Moments {
  readonly expAvg: Tensor;
  readonly expAvgSq: Tensor;
}

interface AdamWSlot extends Slot {
  readonly segments: Tensor | undefined;
  moments?: Moments;
}

/** Mirrors `torch.optim.AdamW`. */
export class AdamW extends SliceOptimizer<AdamWSlot> {
  readonly stateKinds: readonly string[] = ['exp_avg', 'exp_avg_sq'];
  readonly betas: readonly [number, number];
  readonly eps: number;
  readonly weightDecay: number;

  /** `parameters`: fsdp.namedParameters() or model.namedParameters(). Frozen parameters are left out. */
  constructor(parameters: Iterable<readonly [string, Parameter]>, options: AdamWOptions = {}) {
    const { decays = matricesDecay } = options;
    super('AdamW', parameters, options.lr ?? 1e-3, (slice, named) => ({
      slice,
      segments: decayingSegments(slice, decays, named),
      step: 0,
    }));
    this.betas = checkedBetas(this.name, options.betas ?? [0.9, 0.999]);
    this.eps = nonNegative(this.name, 'eps', options.eps ?? 1e-8);
    this.weightDecay = nonNegative(this.name, 'weightDecay', options.weightDecay ?? 0.01);
  }

  /** @internal */
  protected update(slot: AdamWSlot, grad: Tensor): void {
    const { slice, segments } = slot;
    if (slice.numel === 0) return;
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

  /** @internal */
  protected stateOf(slot: AdamWSlot, create: boolean): (() => readonly StateTensor[]) | undefined {
    if (!slot.moments && !create) return undefined;
    const { expAvg, expAvgSq } = momentsOf(slot);
    return () => [
      ...elementwiseState('exp_avg', expAvg, slot.slice.ranges()),
      ...elementwiseState('exp_avg_sq', expAvgSq, slot.slice.ranges()),
    ];
  }
}

function momentsOf(slot: AdamWSlot): Moments {
  const { device, numel } = slot.slice;
  slot.moments ??= {
    expAvg: Tensor.zeros([numel], 'float32', 'optimizer', device),
    expAvgSq: Tensor.zeros([numel], 'float32', 'optimizer', device),
  };
  return slot.moments;
}

/** @internal */
export function checkedBetas(optimizer: string, betas: readonly [number, number]): readonly [number, number] {
  for (const beta of betas)
    if (!(beta >= 0 && beta < 1)) throw new RangeError(`${optimizer}: betas must be in [0, 1) but are [${betas}]`);
  return betas;
}
