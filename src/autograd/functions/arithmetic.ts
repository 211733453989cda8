// Sums and scalings.
import { NONE, native } from '../../native.ts';
import type { Tensor } from '../../tensor/tensor.ts';
import { gradient, output, record } from '../record.ts';

/** a + b, of one shape and dtype: the residual connection. */
export function add(a: Tensor, b: Tensor): Tensor {
  if (a.numel !== b.numel) throw new RangeError(`add: shapes [${a.shape}] and [${b.shape}] differ`);
  const y = output(a.shape, a.dtype);
  native.add(y.handle, a.handle, b.handle);
  return record('add', y, [a, b], (_saved, [needsA, needsB]) => (dy) => [
    needsA ? dy.detach() : undefined,
    needsB ? dy.detach() : undefined,
  ]);
}

/** x · factor. */
export function scale(x: Tensor, factor: number): Tensor {
  const y = output(x.shape, x.dtype);
  native.scale(y.handle, x.handle, NONE, factor, false);
  return record('scale', y, [x], () => (dy) => {
    const dx = gradient(x.shape, x.dtype);
    native.scale(dx.handle, dy.handle, NONE, factor, false);
    return [dx];
  });
}
