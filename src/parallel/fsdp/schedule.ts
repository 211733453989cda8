// When units gather and free: hooks around their modules' forward and backward, and the order that prefetching follows.

import { processState } from '../../core/context.ts';
import { OpenSpan, span } from '../../core/recorder.ts';
import { hook } from '../../nn/hook.ts';
import { currentBackward, onBackwardEnd } from '../../tensor/engine.ts';
import { isGradEnabled } from '../../tensor/grad_mode.ts';
import { type GradNode, nextSequence } from '../../tensor/node.ts';
import { track } from '../../tensor/scope.ts';
import { communicationStream, computeDevice, computeStream, order } from '../../tensor/streams.ts';
import { Tensor } from '../../tensor/tensor.ts';
import type { FsdpOptions, ShardingStrategy } from './options.ts';
import type { FsdpUnit } from './unit.ts';

// A unit answers to the schedule of the outermost module that holds it.
const schedules: WeakMap<FsdpUnit, UnitSchedule> = processState('schedules', 'schedules of FSDP units', new WeakMap());

/** Schedules the units below one root. */
export class UnitSchedule {
  readonly units: FsdpUnit[] = [];
  private readonly strategy: ShardingStrategy;
  private readonly forwardPrefetch: boolean;
  private readonly backwardPrefetch: boolean;
  private root: FsdpUnit | undefined;
  /** Units in the order of the last complete forward, and of the one in progress. */
  private lastOrder: FsdpUnit[] = [];
  private currentOrder: FsdpUnit[] = [];
  private depth = 0;
  /** The backward whose end this schedule waits for. One that threw has no end, and is replaced by the next. */
  private endsWith: object | undefined;
  /** The whole gradients of the unit that was reduced last, on a device or between hosts. */
  private reduced: readonly Tensor[] = [];
  /** In profiles: the unit whose backward is being enqueued, one after the other. */
  private readonly inBackward = new OpenSpan();

  constructor(options: FsdpOptions) {
    this.strategy = options.shardingStrategy ?? 'FULL_SHARD';
    this.forwardPrefetch = options.forwardPrefetch ?? true;
    this.backwardPrefetch = options.backwardPrefetch ?? true;
  }

  /** Whether a forward of the root is running. */
  get isRunning(): boolean {
    return this.depth > 0;
  }

  /** Puts hooks on the unit's module. The root is added last. */
  add(unit: FsdpUnit, isRoot: boolean): void {
    this.units.push(unit);
    if (isRoot) this.root = unit;
    schedules.set(unit, this);
    hook(unit.module, 'forward', (inner, args) => schedules.get(unit)!.enter(unit, inner, args));
    if ('step' in unit.module)
      hook(unit.module, 'step', (inner, args) => schedules.get(unit)!.enter(unit, inner, args));
  }

  /** Takes over units that were wrapped on their own before the root was. */
  adopt(units: readonly FsdpUnit[]): void {
    for (const unit of units) {
      this.units.push(unit);
      schedules.set(unit, this);
    }
  }

  private enter(unit: FsdpUnit, inner: (...args: unknown[]) => unknown, args: unknown[]): unknown {
    return span('forward', unit.title, () => this.run(unit, inner, args));
  }

  private run(unit: FsdpUnit, inner: (...args: unknown[]) => unknown, args: unknown[]): unknown {
    const isRoot = unit === this.root;
    if (!isRoot && !this.isRunning) {
      throw new Error(`FSDP: ${unit.name} was run before the root; call forward of the outermost wrapped module`);
    }
    if (isRoot && this.isRunning) throw new Error('FSDP: the root module was run inside its own forward');
    const grad = isGradEnabled();
    if (isRoot) this.currentOrder = [];
    this.depth++;
    try {
      const position = this.currentOrder.push(unit) - 1;
      unit.unshardAsync();
      const next = this.lastOrder[position] === unit ? this.lastOrder[position + 1] : undefined;
      if (this.forwardPrefetch) next?.unshardAsync();
      unit.unshard();
      const hasGradInput = grad && args.some((arg) => arg instanceof Tensor && arg.requiresGrad);
      const inputs = hasGradInput ? args.map((arg) => this.afterBackward(unit, arg)) : args;
      const out = inner(...inputs);
      if (!this.keepsAfterForward(unit, grad, position)) unit.reshard();
      return grad ? mapTensors(out, (tensor) => this.beforeBackward(unit, tensor)) : out;
    } finally {
      this.depth--;
      if (isRoot) this.lastOrder = this.currentOrder;
    }
  }

  // The root is needed again at once, and so is the last unit; SHARD_GRAD_OP and NO_SHARD keep all until backward.
  private keepsAfterForward(unit: FsdpUnit, grad: boolean, position: number): boolean {
    if (!grad) return false;
    if (
      unit === this.root ||
      this.strategy === 'SHARD_GRAD_OP' ||
      this.strategy === 'NO_SHARD' ||
      this.strategy === '_HYBRID_SHARD_ZERO2'
    ) {
      return true;
    }
    return this.lastOrder.length > 0 && position === this.lastOrder.length - 1 && this.lastOrder[position] === unit;
  }

  /** An identity on an input: its backward runs when all of the unit's own is done. */
  private afterBackward(unit: FsdpUnit, arg: unknown): unknown {
    if (!(arg instanceof Tensor) || !arg.requiresGrad) return arg;
    return identity(`fsdp_after(${unit.name})`, arg, () => this.finish(unit));
  }

  /** An identity on an output: its backward runs before any of the unit's. */
  private beforeBackward(unit: FsdpUnit, out: Tensor): Tensor {
    if (!out.requiresGrad) return out;
    return identity(`fsdp_before(${unit.name})`, out, () => {
      this.registerEnd();
      this.inBackward.open('backward', unit.title);
      if (unit.isReadByBackward) unit.unshardAsync();
      if (this.backwardPrefetch) {
        const next = this.lastOrder[this.lastOrder.lastIndexOf(unit) - 1];
        if (next?.isReadByBackward) next.unshardAsync();
      }
      if (unit.isReadByBackward) unit.unshard();
    });
  }

  private finish(unit: FsdpUnit): void {
    if (unit.isUnreduced) {
      // Backward of the next unit would wait for this reduction to write where these gradients are: they are kept until that unit
      // is reduced itself, so that two whole gradients take turns. Within a host nothing runs meanwhile.
      this.dropReduced();
      this.reduced = unit.reduceGradients();
      if (computeDevice() === 'cpu' && !unit.spansHosts) this.dropReduced();
    }
    if (!unit.accumulateOnly || this.strategy !== 'SHARD_GRAD_OP') unit.reshard();
    this.inBackward.close();
  }

  private dropReduced(): void {
    for (const gradient of this.reduced) gradient.dispose();
    this.reduced = [];
  }

  private registerEnd(): void {
    const backward = currentBackward();
    if (!backward || this.endsWith === backward) return;
    this.endsWith = backward;
    onBackwardEnd(() => {
      this.endsWith = undefined;
      this.inBackward.close();
      for (const unit of [...this.units].reverse()) this.finish(unit);
      this.dropReduced();
      order(communicationStream(), computeStream());
    });
  }

  /** Frees whatever is gathered (after an evaluation, or a forward whose backward never came). */
  reshardAll(): void {
    for (const unit of this.units) unit.reshard();
  }
}

function identity(name: string, input: Tensor, onBackward: () => void): Tensor {
  const out = input.view(input.shape);
  const node: GradNode = {
    name,
    sequence: nextSequence(),
    inputs: [input],
    backward: (gradOut) => {
      onBackward();
      return [gradOut.detach()];
    },
    release: () => {},
    done: false,
  };
  out.requiresGrad = true;
  out.gradFn = node;
  track(out);
  return out;
}

function mapTensors(value: unknown, fn: (tensor: Tensor) => Tensor): unknown {
  if (value instanceof Tensor) return fn(value);
  if (Array.isArray(value)) return value.map((item) => mapTensors(item, fn));
  if (value !== null && typeof value === 'object' && Object.getPrototypeOf(value) === Object.prototype) {
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, mapTensors(item, fn)]));
  }
  return value;
}
