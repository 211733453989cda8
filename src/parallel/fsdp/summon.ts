// Whole parameters for a moment: gather everything, run, write back.
import { settle } from '../../core/finally.ts';
import { native } from '../../native.ts';
import { computeStream } from '../../tensor/streams.ts';
import { Tensor } from '../../tensor/tensor.ts';
import type { ShardBucket } from './bucket.ts';
import type { UnitSchedule } from './schedule.ts';
import type { FsdpUnit } from './unit.ts';

export interface SummonOptions {
  /** Also give every parameter its whole `.grad`. */
  withGrads?: boolean | undefined;
  /** Write changes of the parameters back to the shards. Default true. */
  writeback?: boolean | undefined;
}

export function summon<T>(units: readonly FsdpUnit[], schedule: UnitSchedule, fn: () => T, options: SummonOptions): T {
  if (schedule.isRunning) throw new Error('summonFullParams: not inside a forward');
  const open: { bucket: ShardBucket; full: Tensor }[] = [];
  const close = (): void => {
    for (const { bucket, full } of open) {
      if (options.writeback !== false) {
        bucket.beginWrite();
        using own = full.slice(bucket.shardOffset, [bucket.layout.shardNumel]);
        bucket.shard.copyFrom(own);
        bucket.markShardWritten();
      }
      bucket.expose(undefined);
      full.dispose();
      for (const { parameter } of bucket.layout.spans) {
        parameter.grad?.dispose();
        parameter.grad = undefined;
      }
    }
    native.streamSynchronize(computeStream());
  };
  for (const bucket of units.flatMap((unit) => unit.buckets)) {
    bucket.reshard();
    const full = bucket.gatherValues();
    bucket.expose(full);
    open.push({ bucket, full });
    if (options.withGrads) exposeGradients(bucket);
  }
  return settle(fn, close);
}

/** Gives the parameters of a bucket their whole gradients. Collective. */
function exposeGradients(bucket: ShardBucket): void {
  const { gradient } = bucket;
  if (!gradient?.shard) return;
  gradient.applyScale();
  using grads = bucket.gather(gradient.shard);
  for (const { parameter, offset } of bucket.layout.spans) {
    using view = grads.slice(offset, parameter.shape);
    parameter.grad = Tensor.empty(parameter.shape, view.dtype, 'gradient', view.device);
    parameter.grad.copyFrom(view);
  }
}
