// The norm of all gradients, and the factor that brings it down to a bound.

import type { ProcessGroup } from '../../distributed/process_group.ts';
import { native } from '../../native.ts';
import { computeDevice, onCommunicationStream } from '../../tensor/streams.ts';
import { Tensor } from '../../tensor/tensor.ts';
import type { ShardBucket } from './bucket.ts';

/**
 * The norm before, 0-d float32; the factor that brings it to `maxNorm` at most is left for the optimizer. `grid`: the ranks that
 * together hold one whole model. What several of them hold counts on the first alone. Collective; enqueues.
 */
export function clipGradients(buckets: readonly ShardBucket[], grid: ProcessGroup, maxNorm: number): Tensor {
  const empty = (shape: readonly number[]): Tensor => Tensor.empty(shape, 'float32', 'other', computeDevice());
  const [sum, factor, norm] = [empty([1]), empty([1]), empty([])];
  sumOfSquares(buckets, sum);
  if (grid.size > 1) onCommunicationStream(() => grid.allReduce(sum.handle, 'sum'));
  native.clipFactor(norm.handle, factor.handle, sum.handle, maxNorm);
  for (const { gradient } of buckets) if (gradient?.shard) gradient.scale = factor.detach();
  sum.dispose();
  factor.dispose();
  return norm;
}

/** Of this rank's gradient shards, into `sum` (1) float32. */
function sumOfSquares(buckets: readonly ShardBucket[], sum: Tensor): void {
  native.fill(sum.handle, 0);
  for (const { gradient, usedInShard, countedRanges } of buckets) {
    if (!gradient?.shard || usedInShard === 0) continue;
    gradient.applyScale();
    for (const [from, to] of countedRanges) {
      using counted = gradient.shard.slice(from, [to - from]);
      native.sumSquares(sum.handle, counted.handle, true);
    }
  }
}
