// The gradient of a bucket: backward writes it whole, straight into one flat buffer, and it is reduced to this rank's shard.

import type { GradClaim, GradSink } from '../../autograd/record.ts';
import { span } from '../../core/recorder.ts';
import type { ProcessGroup } from '../../distributed/process_group.ts';
import { native } from '../../native.ts';
import type { Parameter } from '../../nn/parameter.ts';
import type { FloatDType } from '../../tensor/dtype.ts';
import { communicationStream, computeStream, onStream, order } from '../../tensor/streams.ts';
import { Tensor } from '../../tensor/tensor.ts';
import type { BucketShape } from './bucket.ts';
import type { FlatRange } from './flat.ts';
import { FlatViews } from './flat_views.ts';
import { sharedTensor } from './memory.ts';

export class BucketGradient {
  /** This rank's reduced gradient, in the master dtype; undefined before the first backward and after zero. */
  shard: Tensor | undefined;
  /** A factor (1) float32 that clipping left for the optimizer to apply. */
  scale: Tensor | undefined;
  /** Gradients are kept unsharded while true (noSync). */
  accumulateOnly = false;

  private full: Tensor | undefined;
  private views: FlatViews | undefined;
  private readonly written = new Set<Parameter>();
  private readonly claims = new Map<Parameter, Claim>();
  private readonly bucket: BucketShape;
  private readonly onReduceScatter: () => void;

  /** `onReduceScatter`: called when one is enqueued. */
  constructor(bucket: BucketShape, onReduceScatter: () => void) {
    this.bucket = bucket;
    this.onReduceScatter = onReduceScatter;
  }

  /** Where backward writes the gradient of a parameter. */
  sink(parameter: Parameter): GradSink {
    this.makeRoom();
    this.claims.get(parameter)?.move();
    const accumulate = this.written.has(parameter);
    this.written.add(parameter);
    return { target: this.views!.of(parameter)!, accumulate };
  }

  /** The same for parameters that lie in a range of their own. Where some have a gradient already, the others begin with zeros. */
  rangeSink(parameters: readonly Parameter[], range: FlatRange): GradSink {
    const sinks = parameters.map((parameter) => this.sink(parameter));
    const accumulate = sinks.some((sink) => sink.accumulate);
    if (accumulate) for (const sink of sinks) if (!sink.accumulate) native.fill(sink.target.handle, 0);
    return { target: this.views!.range(range), accumulate };
  }

  private makeRoom(): void {
    if (this.full) return;
    const { layout, groups, dtypes } = this.bucket;
    const readers = groups.shard.size > 1 ? groups.shard : groups.replicate;
    this.full = sharedTensor(readers, layout.numel, dtypes.reduce, 'gradient');
    this.views = new FlatViews(layout, this.full);
    this.written.clear();
  }

  /** Room for the gradient of a parameter before backward: none where there is one already, or where sums would be rounded. */
  claim(parameter: Parameter): GradClaim | undefined {
    if (this.bucket.dtypes.reduce !== 'float32' || this.written.has(parameter)) return undefined;
    this.makeRoom();
    this.claims.get(parameter)?.move();
    const claim = new Claim(this.views!.of(parameter)!, (counts) => {
      this.claims.delete(parameter);
      if (counts) this.written.add(parameter);
    });
    this.claims.set(parameter, claim);
    return claim;
  }

  /** Whether reduce() has anything to do: not inside noSync. */
  get isUnreduced(): boolean {
    return this.written.size > 0 && !this.accumulateOnly;
  }

  /** Backward is past this unit: enqueues the reduction of what it accumulated. The caller disposes the whole gradient. */
  reduce(): Tensor | undefined {
    const grad = this.full;
    if (!grad || !this.isUnreduced) return undefined;
    for (const claim of this.claims.values()) claim.move();
    span('reduce', this.bucket.title, () => this.enqueueReduction(grad));
    return grad;
  }

  private enqueueReduction(grad: Tensor): void {
    this.zeroUnwritten(grad);
    const stream = communicationStream();
    order(computeStream(), stream);
    onStream(stream, () => {
      const { shard, replicate } = this.bucket.groups;
      const accumulate = this.shard !== undefined;
      let part = grad;
      if (shard.size > 1) {
        // With replicas, the new part is averaged over them before it joins what earlier steps left.
        const direct = replicate.size === 1;
        part = direct && accumulate ? this.shard! : this.emptyShard(replicate);
        shard.reduceScatter(part.handle, grad.handle, 'avg', direct && accumulate);
        this.onReduceScatter();
        if (direct) {
          this.shard = part;
          return;
        }
      }
      if (replicate.size > 1) replicate.allReduce(part.handle, 'avg');
      this.join(part);
      if (part !== grad) part.dispose();
    });
    this.views![Symbol.dispose]();
    this.views = undefined;
    this.full = undefined;
  }

  private emptyShard(readers: ProcessGroup): Tensor {
    const { layout, dtypes } = this.bucket;
    const dtype = readers.size > 1 ? dtypes.reduce : (dtypes.master as FloatDType);
    return sharedTensor(readers, layout.shardNumel, dtype, 'gradient');
  }

  /** Adds a reduced part to the gradient shard. */
  private join(part: Tensor): void {
    const { layout, dtypes } = this.bucket;
    if (this.shard) native.add(this.shard.handle, this.shard.handle, part.handle);
    else if (part.dtype === dtypes.master) this.shard = part.detach();
    else {
      this.shard = Tensor.empty([layout.shardNumel], dtypes.master, 'gradient', part.device);
      this.shard.copyFrom(part);
    }
  }

  private zeroUnwritten(grad: Tensor): void {
    const { layout } = this.bucket;
    const zero = (from: number, to: number): void => {
      using range = grad.slice(from, [to - from]);
      native.fill(range.handle, 0);
    };
    for (const [from, to] of layout.gaps(0, layout.numel)) zero(from, to);
    for (const { parameter, offset, numel } of layout.spans) {
      if (!this.written.has(parameter)) zero(offset, offset + numel);
    }
    this.written.clear();
  }

  zero(): void {
    this.shard?.dispose();
    this.shard = undefined;
    this.scale?.dispose();
    this.scale = undefined;
    this.written.clear();
    if (this.claims.size > 0) return; // a loss between its forward and its backward
    this.views?.[Symbol.dispose]();
    this.views = undefined;
    this.full?.dispose();
    this.full = undefined;
  }

  /** @internal Applies a factor that clipping left, for readers of the gradient other than the optimizer. */
  applyScale(): void {
    if (!this.scale || !this.shard) return;
    native.scale(this.shard.handle, this.shard.handle, this.scale.handle, 1, false);
    this.scale.dispose();
    this.scale = undefined;
  }
}

class Claim implements GradClaim {
  target: Tensor;
  private isInPlace = true;
  private readonly onEnd: (counts: boolean) => void;

  constructor(place: Tensor, onEnd: (counts: boolean) => void) {
    this.target = place;
    this.onEnd = onEnd;
  }

  settle(): boolean {
    if (this.isInPlace) this.onEnd(true);
    return this.isInPlace;
  }

  /** Leaves the place to others. */
  move(): void {
    const own = Tensor.empty(this.target.shape, this.target.dtype, 'gradient', this.target.device);
    own.copyFrom(this.target);
    this.target = own;
    this.isInPlace = false;
    this.onEnd(false);
  }
}
