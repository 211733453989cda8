// One FSDP unit: a flat buffer of which this rank owns a shard. Gradients are written straight into a flat buffer by the ops,
// and reduced to this rank's shard of them.
import type { GradSink } from '../../autograd/record.ts';
import { span } from '../../core/recorder.ts';
import type { ProcessGroup } from '../../distributed/process_group.ts';
import { native } from '../../native.ts';
import type { Module } from '../../nn/module.ts';
import type { Parameter, ParameterOwner } from '../../nn/parameter.ts';
import type { FloatDType } from '../../tensor/dtype.ts';
import { communicationStream, computeStream, onStream, order, StreamEvent } from '../../tensor/streams.ts';
import { type Device, Tensor } from '../../tensor/tensor.ts';
import type { FlatLayout } from './flat.ts';
import { sharedTensor, type UnitMemory } from './memory.ts';

export interface UnitGroups {
  /** Ranks that hold the shards of one copy. */
  shard: ProcessGroup;
  /** Ranks that hold the same shard; size 1 without replication. */
  replicate: ProcessGroup;
  /** Ranks that hold the other parts of each layer; undefined without tensor parallelism. */
  tensor: ProcessGroup | undefined;
  /** Shard × tensor-parallel ranks, the latter fastest: together one whole model. */
  grid: ProcessGroup;
}

export interface UnitDtypes {
  /** Of the shard, the gradient shard and the checkpoint. */
  master: FloatDType;
  /** Of forward and backward. */
  compute: FloatDType;
  /** Of the gradients while they are reduced. */
  reduce: FloatDType;
}

export class FsdpUnit implements ParameterOwner {
  readonly name: string;
  readonly module: Module;
  readonly layout: FlatLayout;
  readonly groups: UnitGroups;
  readonly dtypes: UnitDtypes;
  /** This rank's reduced gradient; undefined before the first backward and after zeroGrad. */
  gradShard: Tensor | undefined;
  /** A factor (1) float32 that clipping left for the optimizer to apply. */
  gradScale: Tensor | undefined;
  /** Gradients are kept unsharded while true (noSync). */
  accumulateOnly = false;

  private readonly memory: UnitMemory;
  /** Whether peers may still read this rank's shard: it was gathered, and no reduction of its gradients came after. */
  private isRead = false;
  /** All parameters, while they are gathered. */
  private full: Tensor | undefined;
  private gathered: StreamEvent | undefined;
  private views: Map<Parameter, Tensor> | undefined;
  private fullGrad: Tensor | undefined;
  private gradViews: Map<Parameter, Tensor> | undefined;
  private readonly written = new Set<Parameter>();
  private shardWritten: StreamEvent | undefined;
  private counted: [number, number][] | undefined;

  constructor(
    name: string,
    module: Module,
    layout: FlatLayout,
    groups: UnitGroups,
    dtypes: UnitDtypes,
    memory: UnitMemory,
  ) {
    this.name = name;
    this.module = module;
    this.groups = groups;
    this.dtypes = dtypes;
    this.layout = layout;
    this.memory = memory;
  }

  /** This rank's elements of the flat buffer, in the master dtype. */
  get shard(): Tensor {
    return this.memory.shard;
  }

  get device(): Device {
    return this.shard.device;
  }

  /** The same in the compute dtype, to be written together with the shard; undefined where gathering casts. */
  get computeShard(): Tensor | undefined {
    return this.memory.computeShard;
  }

  /** First element of this rank's shard in the flat buffer. */
  get shardOffset(): number {
    return this.groups.shard.rank * this.layout.shardNumel;
  }

  /** Elements of the shard that are trained: a prefix of it. */
  get trainableInShard(): number {
    return Math.min(this.layout.shardNumel, Math.max(0, this.layout.trainableNumel - this.shardOffset));
  }

  /** Ranges [from, to) of the shard's trained part that this rank counts in norms. */
  get countedRanges(): readonly (readonly [number, number])[] {
    this.counted ??= this.rangesToCount();
    return this.counted;
  }

  private rangesToCount(): [number, number][] {
    const { tensor } = this.groups;
    if (!tensor) return [[0, this.trainableInShard]];
    const ranges: [number, number][] = [];
    let follows = false; // what lies between two parameters is zero
    for (const { span, at, length } of this.layout.within(this.shardOffset, this.shardOffset + this.trainableInShard)) {
      const counts = span.parameter.split?.isPrimary ?? tensor.rank === 0;
      if (counts && follows) ranges.at(-1)![1] = at + length;
      else if (counts) ranges.push([at, at + length]);
      follows = counts;
    }
    return ranges;
  }

  /** In profiles. */
  get title(): string {
    return this.name || 'root';
  }

  get isUnsharded(): boolean {
    return this.full !== undefined;
  }

  /** Must come before the shard is written, on every rank: peers may still read it. Enqueues. */
  beginWrite(): void {
    if (!this.isRead || !this.memory.isMapped) return;
    const stream = communicationStream();
    order(computeStream, stream);
    span('before write', this.title, () => onStream(stream, () => this.groups.shard.enqueueBarrier()));
    order(stream, computeStream);
    this.isRead = false;
  }

  /** The shard was written on the compute stream, on every rank, with its compute copy or without: gathering waits for it. */
  markShardWritten(withCopy = false): void {
    this.reshard();
    this.memory.markWritten(withCopy);
    this.shardWritten?.dispose();
    this.shardWritten = new StreamEvent(computeStream);
  }

  /** Makes every rank's shard readable here, by the communication stream, unless that is under way or done. */
  unshardAsync(): void {
    if (this.full) return;
    this.isRead = true;
    if (!this.memory.isStale) {
      this.full = this.memory.gather();
      return;
    }
    const stream = communicationStream();
    this.shardWritten?.waitOn(stream);
    this.full = span('gather', this.title, () => onStream(stream, () => this.memory.gather()));
    this.gathered = new StreamEvent(stream);
  }

  /** Makes the parameters usable on the compute stream. */
  unshard(): void {
    this.unshardAsync();
    this.gathered?.waitOn(computeStream);
    this.gathered?.dispose();
    this.gathered = undefined;
    if (this.views) return;
    this.views = this.viewsOf(this.full!);
    for (const { parameter } of this.layout.spans) parameter.dtype = this.dtypes.compute;
  }

  /** The parameters cannot be used until they are gathered again. */
  reshard(): void {
    if (!this.full) return;
    if (this.views) for (const view of this.views.values()) view.dispose();
    this.views = undefined;
    // A gather that nobody waited for still comes before what the compute stream does next.
    this.gathered?.waitOn(computeStream);
    this.gathered?.dispose();
    this.gathered = undefined;
    this.full.dispose();
    this.full = undefined;
    for (const { parameter } of this.layout.spans) parameter.dtype = this.dtypes.master;
  }

  private viewsOf(flat: Tensor): Map<Parameter, Tensor> {
    return new Map(
      this.layout.spans.map(({ parameter, offset }) => [parameter, flat.slice(offset, parameter.shape)] as const),
    );
  }

  parameterData(parameter: Parameter): Tensor {
    const view = this.views?.get(parameter);
    if (!view) {
      throw new Error(
        `parameter ${parameter.name} is sharded by FSDP; read it inside summonFullParams, or by stateDict`,
      );
    }
    return view;
  }

  gradSink(parameter: Parameter): GradSink {
    if (!this.fullGrad) {
      this.fullGrad = sharedTensor(this.reduces, this.layout.numel, this.dtypes.reduce, 'gradient');
      this.gradViews = this.viewsOf(this.fullGrad);
      this.written.clear();
    }
    const accumulate = this.written.has(parameter);
    this.written.add(parameter);
    return { target: this.gradViews!.get(parameter)!, accumulate };
  }

  /** The group whose ranks read this rank's full gradient. */
  private get reduces(): ProcessGroup {
    return this.groups.shard.size > 1 ? this.groups.shard : this.groups.replicate;
  }

  /** Whether reduceGradients() has anything to do: not inside noSync. */
  get isUnreduced(): boolean {
    return this.fullGrad !== undefined && !this.accumulateOnly;
  }

  /** Backward is past this unit: enqueues the reduction of what it accumulated. The caller disposes the full gradient. */
  reduceGradients(): Tensor | undefined {
    const grad = this.fullGrad;
    if (!grad || this.accumulateOnly) return undefined;
    span('reduce', this.title, () => this.reduce(grad));
    return grad;
  }

  private reduce(grad: Tensor): void {
    this.zeroUnwritten(grad);
    const stream = communicationStream();
    order(computeStream, stream);
    onStream(stream, () => {
      const { shard, replicate } = this.groups;
      const accumulate = this.gradShard !== undefined;
      let part = grad;
      if (shard.size > 1) {
        // With replicas, the new part is averaged over them before it joins what earlier steps left.
        const direct = replicate.size === 1;
        part = direct && accumulate ? this.gradShard! : this.emptyGradShard(replicate);
        shard.reduceScatter(part.handle, grad.handle, 'avg', direct && accumulate);
        this.isRead = false; // it ends when all have come here, past their backward
        if (direct) {
          this.gradShard = part;
          return;
        }
      }
      if (replicate.size > 1) replicate.allReduce(part.handle, 'avg');
      this.join(part);
      if (part !== grad) part.dispose();
    });
    for (const view of this.gradViews!.values()) view.dispose();
    this.gradViews = undefined;
    this.fullGrad = undefined;
  }

  private emptyGradShard(readers: ProcessGroup): Tensor {
    return sharedTensor(
      readers,
      this.layout.shardNumel,
      readers.size > 1 ? this.dtypes.reduce : this.dtypes.master,
      'gradient',
    );
  }

  /** Adds a reduced part to the gradient shard. */
  private join(part: Tensor): void {
    if (this.gradShard) native.add(this.gradShard.handle, this.gradShard.handle, part.handle);
    else if (part.dtype === this.dtypes.master) this.gradShard = part.detach();
    else {
      this.gradShard = Tensor.empty([this.layout.shardNumel], this.dtypes.master, 'gradient', part.device);
      this.gradShard.copyFrom(part);
    }
  }

  private zeroUnwritten(grad: Tensor): void {
    const zero = (from: number, to: number): void => {
      using range = grad.slice(from, [to - from]);
      native.fill(range.handle, 0);
    };
    for (const [from, to] of this.layout.gaps(0, this.layout.numel)) zero(from, to);
    for (const { parameter, offset, numel } of this.layout.spans) {
      if (!this.written.has(parameter)) zero(offset, offset + numel);
    }
    this.written.clear();
  }

  zeroGrad(): void {
    this.gradShard?.dispose();
    this.gradShard = undefined;
    this.gradScale?.dispose();
    this.gradScale = undefined;
    if (this.gradViews) for (const view of this.gradViews.values()) view.dispose();
    this.gradViews = undefined;
    this.fullGrad?.dispose();
    this.fullGrad = undefined;
  }

  /** @internal Applies a factor that clipping left, for readers of the gradient other than the optimizer. */
  applyGradScale(): void {
    if (!this.gradScale || !this.gradShard) return;
    native.scale(this.gradShard.handle, this.gradShard.handle, this.gradScale.handle, 1, false);
    this.gradScale.dispose();
    this.gradScale = undefined;
  }

  /** A copy of all elements in the master dtype. The caller disposes it. Collective. */
  gatherValues(): Tensor {
    return this.onCommunication(() => this.memory.gatherValues());
  }

  /** Gathers a shard-sized tensor of this unit (gradients, optimizer state) whole. The caller disposes it. Collective. */
  gather(part: Tensor): Tensor {
    return this.onCommunication(() => {
      const whole = Tensor.empty([this.layout.numel], part.dtype, 'staging', part.device);
      this.groups.shard.allGather(whole.handle, part.handle);
      return whole;
    });
  }

  private onCommunication(gather: () => Tensor): Tensor {
    const stream = communicationStream();
    order(computeStream, stream);
    const whole = onStream(stream, gather);
    order(stream, computeStream);
    return whole;
  }

  /** @internal While set, the parameters read as views of `full` (master dtype). */
  expose(full: Tensor | undefined): void {
    if (this.views) for (const view of this.views.values()) view.dispose();
    this.views = full && this.viewsOf(full);
  }
}

/**
 * Sum of squares of the trained part of all gradient shards, into `sum` (1) float32. What several tensor-parallel ranks
 * hold counts on the first of them only.
 */
export function gradientSquares(units: readonly FsdpUnit[], sum: Tensor): void {
  native.fill(sum.handle, 0);
  for (const unit of units) {
    if (!unit.gradShard || unit.trainableInShard === 0) continue;
    unit.applyGradScale();
    for (const [from, to] of unit.countedRanges) {
      using counted = unit.gradShard.slice(from, [to - from]);
      native.sumSquares(sum.handle, counted.handle, true);
    }
  }
}
