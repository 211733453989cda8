// A bucket: parameters of one unit that have the same groups, dtype and use, in one flat buffer of which this rank owns a shard.
// What is trained has a gradient beside it, and is updated as one slice; a frozen bucket has neither.

import type { GradClaim, GradSink } from '../../autograd/record.ts';
import { span } from '../../core/recorder.ts';
import type { AdjacentParameters, Parameter, ParameterOwner } from '../../nn/parameter.ts';
import { type Share, type SliceRange, sharesOf, type TrainableSlice } from '../../nn/trainable_slice.ts';
import type { DType, FloatDType } from '../../tensor/dtype.ts';
import { computeStream, gatherStream, onCommunicationStream, onStream, StreamEvent } from '../../tensor/streams.ts';
import { type Device, Tensor } from '../../tensor/tensor.ts';
import { BucketGradient } from './bucket_gradient.ts';
import type { FlatLayout } from './flat.ts';
import { FlatViews } from './flat_views.ts';
import type { ShardGroups } from './groups.ts';
import type { BucketMemory } from './memory.ts';

export interface BucketDtypes {
  /** Of the shard, the gradient shard and the checkpoint. */
  master: DType;
  /** Of forward and backward. */
  compute: DType;
  /** Of the gradients while they are reduced. */
  reduce: FloatDType;
}

/** What a bucket is before it has memory. */
export interface BucketShape {
  /** In profiles: that of its unit. */
  readonly title: string;
  readonly layout: FlatLayout;
  readonly groups: ShardGroups;
  readonly dtypes: BucketDtypes;
  readonly isTrainable: boolean;
}

export class ShardBucket implements ParameterOwner {
  readonly title: string;
  readonly layout: FlatLayout;
  readonly groups: ShardGroups;
  readonly dtypes: BucketDtypes;
  /** Undefined where nothing is trained. */
  readonly gradient: BucketGradient | undefined;
  readonly trainableSlice: TrainableSlice | undefined;

  private readonly memory: BucketMemory;
  /** Whether peers may still read this rank's shard: it was gathered, and no reduction of its gradients came after. */
  private isRead = false;
  /** All parameters, while they are gathered. */
  private full: Tensor | undefined;
  private gathered: StreamEvent | undefined;
  private views: FlatViews | undefined;
  private shardWritten: StreamEvent | undefined;
  private counted: [number, number][] | undefined;

  constructor(shape: BucketShape, memory: BucketMemory) {
    this.title = shape.title;
    this.layout = shape.layout;
    this.groups = shape.groups;
    this.dtypes = shape.dtypes;
    this.memory = memory;
    if (!shape.isTrainable) return;
    // The reduction ends when all ranks have come there, past their backward.
    this.gradient = new BucketGradient(shape, () => {
      this.isRead = false;
    });
    this.trainableSlice = new BucketSlice(this, this.gradient);
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

  /** Elements of this rank's shard up to the end of the last parameter. */
  get usedInShard(): number {
    return Math.min(this.layout.shardNumel, Math.max(0, this.layout.usedNumel - this.shardOffset));
  }

  /** The parts of parameters in this rank's shard. */
  ranges(): Generator<SliceRange> {
    return this.layout.within(this.shardOffset, this.shardOffset + this.layout.shardNumel);
  }

  /** Ranges [from, to) of the shard that this rank counts in norms: what several ranks hold, the first of them counts. */
  get countedRanges(): readonly (readonly [number, number])[] {
    this.counted ??= this.rangesToCount();
    return this.counted;
  }

  private rangesToCount(): [number, number][] {
    if (!this.groups.tensor) return [[0, this.usedInShard]];
    const ranges: [number, number][] = [];
    let follows = false; // what lies between two parameters is zero
    for (const { parameter, at, length } of this.ranges()) {
      const counts = parameter.placement.isFirst;
      if (counts && follows) ranges.at(-1)![1] = at + length;
      else if (counts) ranges.push([at, at + length]);
      follows = counts;
    }
    return ranges;
  }

  /** Must come before the shard is written, on every rank: peers, or a gather, may still read it. Enqueues. */
  beginWrite(): void {
    if (!this.memory.isMapped) this.gathered?.waitOn(computeStream());
    if (!this.isRead || !this.memory.isMapped) return;
    span('before write', this.title, () => onCommunicationStream(() => this.groups.shard.enqueueBarrier()));
    this.isRead = false;
  }

  /** The shard was written on the compute stream, on every rank, with its compute copy or without: gathering waits for it. */
  markShardWritten(withCopy = false): void {
    this.reshard();
    this.memory.markWritten(withCopy);
    this.shardWritten?.dispose();
    this.shardWritten = new StreamEvent(computeStream());
  }

  /** Makes every rank's shard readable here, by the stream for gathering, unless that is under way or done. */
  unshardAsync(): void {
    if (this.full) return;
    this.isRead = true;
    if (!this.memory.isStale) {
      this.full = this.memory.gather();
      return;
    }
    const stream = gatherStream(this.groups.gather.hosts === 1);
    this.shardWritten?.waitOn(stream);
    this.full = span('gather', this.title, () => onStream(stream, () => this.memory.gather()));
    this.gathered = new StreamEvent(stream);
  }

  /** Makes the parameters usable on the compute stream. */
  unshard(): void {
    this.unshardAsync();
    this.gathered?.waitOn(computeStream());
    this.gathered?.dispose();
    this.gathered = undefined;
    if (this.views) return;
    this.views = new FlatViews(this.layout, this.full!);
    for (const { parameter } of this.layout.spans) parameter.dtype = this.dtypes.compute;
  }

  /** The parameters cannot be used until they are gathered again. */
  reshard(): void {
    if (!this.full) return;
    this.views?.[Symbol.dispose]();
    this.views = undefined;
    // A gather that nobody waited for still comes before what the compute stream does next.
    this.gathered?.waitOn(computeStream());
    this.gathered?.dispose();
    this.gathered = undefined;
    this.full.dispose();
    this.full = undefined;
    for (const { parameter } of this.layout.spans) parameter.dtype = this.dtypes.master;
  }

  parameterData(parameter: Parameter): Tensor {
    return this.viewsFor(parameter).of(parameter)!;
  }

  private viewsFor(parameter: Parameter): FlatViews {
    if (this.views) return this.views;
    throw new Error(`parameter ${parameter.name} is sharded by FSDP; read it inside summonFullParams, or by stateDict`);
  }

  adjacent(parameters: readonly Parameter[]): AdjacentParameters | undefined {
    const range = this.layout.rangeOf(parameters);
    return (
      range && {
        data: () => this.viewsFor(parameters[0]!).range(range),
        gradSink: () => this.gradientFor(parameters[0]!).rangeSink(parameters, range),
      }
    );
  }

  gradSink(parameter: Parameter): GradSink {
    return this.gradientFor(parameter).sink(parameter);
  }

  private gradientFor(parameter: Parameter): BucketGradient {
    if (this.gradient) return this.gradient;
    throw new Error(`parameter ${parameter.name} was frozen when FSDP wrapped it, and has no room for a gradient`);
  }

  claimGrad(parameter: Parameter): GradClaim | undefined {
    return this.gradient?.claim(parameter);
  }

  /** A copy of all elements in the master dtype. The caller disposes it. Collective. */
  gatherValues(): Tensor {
    return onCommunicationStream(() => this.memory.gatherValues());
  }

  /** Gathers a shard-sized tensor of this bucket (gradients, optimizer state) whole. The caller disposes it. Collective. */
  gather(part: Tensor): Tensor {
    return onCommunicationStream(() => {
      const whole = Tensor.empty([this.layout.numel], part.dtype, 'staging', part.device);
      this.groups.shard.allGather(whole.handle, part.handle);
      return whole;
    });
  }

  /** @internal While set, the parameters read as views of `full` (master dtype). */
  expose(full: Tensor | undefined): void {
    this.views?.[Symbol.dispose]();
    this.views = full && new FlatViews(this.layout, full);
  }
}

/** The used part of a bucket's shard, as an optimizer sees it. */
class BucketSlice implements TrainableSlice {
  private readonly bucket: ShardBucket;
  private readonly grad: BucketGradient;

  constructor(bucket: ShardBucket, grad: BucketGradient) {
    this.bucket = bucket;
    this.grad = grad;
  }

  get numel(): number {
    return this.bucket.usedInShard;
  }

  get device(): Device {
    return this.bucket.device;
  }

  get parameters(): readonly Parameter[] {
    return this.bucket.layout.spans.map(({ parameter }) => parameter);
  }

  ranges(): Generator<SliceRange> {
    return this.bucket.ranges();
  }

  *shares(): Generator<Share> {
    const { layout, groups } = this.bucket;
    for (let rank = 0; rank < groups.shard.size; rank++)
      for (const { parameter, start, length } of layout.within(
        rank * layout.shardNumel,
        (rank + 1) * layout.shardNumel,
      ))
        yield* sharesOf(parameter, start, length);
  }

  values(): Tensor {
    return this.bucket.shard.slice(0, [this.numel]);
  }

  copy(): Tensor | undefined {
    return this.bucket.computeShard?.slice(0, [this.numel]);
  }

  gradient(): Tensor | undefined {
    return this.grad.shard?.slice(0, [this.numel]);
  }

  get gradScale(): Tensor | undefined {
    return this.grad.scale;
  }

  reduce(tensor: Tensor, op: 'sum' | 'max'): void {
    const { grid } = this.bucket.groups;
    if (grid.size > 1) onCommunicationStream(() => grid.allReduce(tensor.handle, op));
  }

  beginWrite(): void {
    this.bucket.beginWrite();
  }

  markWritten(): void {
    this.bucket.markShardWritten(true);
  }

  zeroGrad(): void {
    this.grad.zero();
  }
}
