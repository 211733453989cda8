// AdamW, one launch per FSDP unit: state lives beside the flat shard. Arithmetic is that of torch.optim.AdamW.

import { span } from '../core/recorder.ts';
import { NONE, native } from '../native.ts';
import { Parameter } from '../nn/parameter.ts';
import { FsdpUnit } from '../parallel/fsdp/unit.ts';
import { computeDevice } from '../tensor/streams.ts';
import { Tensor } from '../tensor/tensor.ts';

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

/** What one launch updates: the trained part of a unit's shard, or a single parameter. */
interface Slot {
  unit?: FsdpUnit;
  parameter?: Parameter;
  numel: number;
  /** int64 [begin, end) pairs of elements that decay */
  segments?: Tensor | undefined;
  expAvg?: Tensor;
  expAvgSq?: Tensor;
  step: number;
}

/** Optimizer state of one slot, for checkpoints. */
export interface SlotState {
  unit?: FsdpUnit | undefined;
  parameter?: Parameter | undefined;
  step: number;
  expAvg: Tensor;
  expAvgSq: Tensor;
}

export class AdamW {
  lr: number;
  readonly betas: readonly [number, number];
  readonly eps: number;
  readonly weightDecay: number;
  private readonly slots: Slot[] = [];

  /** `parameters`: fsdp.namedParameters() or model.namedParameters(). Frozen parameters are left out. */
  constructor(parameters: Iterable<readonly [string, Parameter]>, options: AdamWOptions = {}) {
    this.lr = nonNegative('lr', options.lr ?? 1e-3);
    this.betas = options.betas ?? [0.9, 0.999];
    for (const beta of this.betas)
      if (!(beta >= 0 && beta < 1)) throw new RangeError(`AdamW: betas must be in [0, 1) but are [${this.betas}]`);
    this.eps = nonNegative('eps', options.eps ?? 1e-8);
    this.weightDecay = nonNegative('weightDecay', options.weightDecay ?? 0.01);
    const decays = options.decays ?? ((_: string, parameter: Parameter) => parameter.shape.length >= 2);
    const units = new Set<FsdpUnit>();
    for (const [name, parameter] of parameters) {
      if (!(parameter instanceof Parameter))
        throw new TypeError('AdamW: give it namedParameters(), pairs of name and parameter');
      if (!parameter.requiresGrad) continue;
      if (parameter.owner instanceof FsdpUnit) units.add(parameter.owner);
      else {
        const segments = decays(name, parameter) ? [[0, parameter.numel] as const] : [];
        this.slots.push({ parameter, numel: parameter.numel, segments: segmentTensor(segments), step: 0 });
      }
    }
    for (const unit of units) {
      const numel = unit.trainableInShard;
      const segments: [number, number][] = [];
      for (const { span, at, length } of unit.layout.within(unit.shardOffset, unit.shardOffset + numel)) {
        if (decays(span.parameter.name, span.parameter)) segments.push([at, at + length]);
      }
      this.slots.push({ unit, numel, segments: segmentTensor(segments), step: 0 });
    }
    if (this.slots.length === 0) throw new Error('AdamW: there is no parameter to train');
  }

  /** Updates every parameter that has a gradient. Enqueues. */
  step(): void {
    span('optimizer', '', () => this.update());
  }

  private update(): void {
    for (const slot of this.slots) {
      const { unit, parameter } = slot;
      const gradient = unit ? unit.gradShard : parameter!.grad;
      if (!gradient) continue;
      slot.step++;
      unit?.beginWrite();
      if (slot.numel === 0) {
        unit?.markShardWritten();
        continue;
      }
      const { expAvg, expAvgSq } = stateOf(slot);
      using values = unit ? unit.shard.slice(0, [slot.numel]) : parameter!.detach();
      using copy = unit?.computeShard?.slice(0, [slot.numel]);
      using grad = gradient.slice(0, [slot.numel]);
      native.adamw(
        values.handle,
        grad.handle,
        expAvg.handle,
        expAvgSq.handle,
        slot.segments?.handle ?? NONE,
        unit?.gradScale?.handle ?? NONE,
        copy?.handle ?? NONE,
        this.lr,
        this.betas[0],
        this.betas[1],
        this.eps,
        slot.segments ? this.weightDecay : 0,
        slot.step,
      );
      unit?.markShardWritten(true);
    }
  }

  /** Drops gradients. */
  zeroGrad(): void {
    for (const { unit, parameter } of this.slots) {
      unit?.zeroGrad();
      parameter?.grad?.dispose();
      if (parameter) parameter.grad = undefined;
    }
  }

  /** @internal State of the slots that have some; zeros are made for the others when `create`. */
  states(create = false): SlotState[] {
    if (create) {
      for (const slot of this.slots) stateOf(slot);
    }
    return this.slots.flatMap(({ unit, parameter, step, expAvg, expAvgSq }) =>
      expAvg && expAvgSq ? [{ unit, parameter, step, expAvg, expAvgSq }] : [],
    );
  }

  /** @internal Steps taken, of the slot of one unit or parameter, or of all. */
  setStep(step: number, of?: FsdpUnit | Parameter): void {
    for (const slot of this.slots) if (!of || slot.unit === of || slot.parameter === of) slot.step = step;
  }
}

function stateOf(slot: Slot): { expAvg: Tensor; expAvgSq: Tensor } {
  const device = slot.unit?.shard.device ?? slot.parameter!.device;
  slot.expAvg ??= Tensor.zeros([slot.numel], 'float32', 'optimizer', device);
  slot.expAvgSq ??= Tensor.zeros([slot.numel], 'float32', 'optimizer', device);
  return { expAvg: slot.expAvg, expAvgSq: slot.expAvgSq };
}

function segmentTensor(segments: readonly (readonly [number, number])[]): Tensor | undefined {
  if (segments.length === 0) return undefined;
  return Tensor.from(BigInt64Array.from(segments.flat(), BigInt), [2 * segments.length], {
    dtype: 'int64',
    device: computeDevice(),
  });
}

function nonNegative(name: string, value: number): number {
  if (!(value >= 0)) throw new RangeError(`AdamW: ${name} must be at least 0 but is ${value}`);
  return value;
}
