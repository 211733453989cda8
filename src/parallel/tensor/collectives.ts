// The collectives of tensor parallelism as functions with a backward. They run in the order of the program, which is the same
// on every rank of the group: on the current stream, or beside it where there is work that does not need their result.

import { flushDeferred } from '../../autograd/deferred.ts';
import { gradient, isSole, output, record } from '../../autograd/record.ts';
import type { ProcessGroup } from '../../distributed/process_group.ts';
import { track } from '../../tensor/scope.ts';
import { computeStream, onStream, order, tensorParallelStream } from '../../tensor/streams.ts';
import type { Tensor } from '../../tensor/tensor.ts';

/** Identity; backward sums the gradients of the group. Before layers that each rank has a part of. */
export function copyToGroup(x: Tensor, group: ProcessGroup): Tensor {
  return record('copy_to_group', alias(x), [x], () => (dy) => [summed(dy, group)]);
}

/** Sum over the group, in place of `x`, which nothing else may use; backward is the identity. After GEMMs of a part of the columns. */
export function reduceFromGroup(x: Tensor, group: ProcessGroup): Tensor {
  group.allReduce(x.handle, 'sum');
  return record('reduce_from_group', alias(x), [x], () => (dy) => [dy.detach()]);
}

/** This rank's rows (rows / n, dim) of all (rows, dim); backward sums the gradients of the group and takes this rank's rows. */
export function gatherRows(x: Tensor, group: ProcessGroup): Tensor {
  const y = output([x.size(0) * group.size, ...x.shape.slice(1)], x.dtype, x.device);
  group.allGather(y.handle, x.handle);
  return record('gather_rows', y, [x], () => (dy) => {
    const dx = gradient(x.shape, x.dtype, x.device);
    hidden(() => group.reduceScatter(dx.handle, dy.handle, 'sum'));
    return [dx];
  });
}

/** Sum over the group of (rows, dim), of which this rank gets its rows (rows / n, dim); backward gathers. */
export function reduceScatterRows(x: Tensor, group: ProcessGroup): Tensor {
  const y = output([x.size(0) / group.size, ...x.shape.slice(1)], x.dtype, x.device);
  group.reduceScatter(y.handle, x.handle, 'sum');
  return record('reduce_scatter_rows', y, [x], () => (dy) => {
    const dx = gradient(x.shape, x.dtype, x.device);
    group.allGather(dx.handle, dy.handle);
    return [dx];
  });
}

/** The same storage as a result of its own. */
function alias(x: Tensor): Tensor {
  const y = x.detach();
  track(y);
  return y;
}

// In place when nothing else reads the gradient.
function summed(dy: Tensor, group: ProcessGroup): Tensor {
  const inPlace = isSole(dy);
  const sum = inPlace ? dy.detach() : gradient(dy.shape, dy.dtype, dy.device);
  if (!inPlace) sum.copyFrom(dy);
  hidden(() => group.allReduce(sum.handle, 'sum'));
  return sum;
}

// A collective of backward, beside the deferred GEMMs of the layers above it.
function hidden(collective: () => void): void {
  const stream = tensorParallelStream();
  order(computeStream(), stream);
  onStream(stream, collective);
  flushDeferred();
  order(stream, computeStream());
}
