// Sums and scalings.
import { NONE, native } from '../../native.ts';
import { Tensor } from '../../tensor/tensor.ts';
import { gradient, output, record, writeGrad } from '../record.ts';

/** a + b, of one shape and dtype: the residual connection. */
export function add(a: Tensor, b: Tensor): Tensor {
  if (a.numel !== b.numel) throw new RangeError(`add: shapes [${a.shape}] and [${b.shape}] differ`);
  const y = output(a.shape, a.dtype, a.device);
  native.add(y.handle, a.handle, b.handle);
  return record('add', y, [a, b], (_saved, [needsA, needsB]) => (dy) => [
    needsA ? dy.detach() : undefined,
    needsB ? dy.detach() : undefined,
  ]);
}

/** x · factor. */
export function scale(x: Tensor, factor: number): Tensor {
  const y = output(x.shape, x.dtype, x.device);
  native.scale(y.handle, x.handle, NONE, factor, false);
  return record('scale', y, [x], () => (dy) => {
    const dx = gradient(x.shape, x.dtype, x.device);
    native.scale(dx.handle, dy.handle, NONE, factor, false);
    return [dx];
  });
}

/** x (..., dim) + bias (dim), as a GEMM over one feature, so that no op of its own is needed. */
export function addBias(x: Tensor, bias: Tensor): Tensor {
  const dim = bias.size(0);
  const rows = x.numel / dim;
  const y = output(x.shape, x.dtype, x.device);
  using ones = Tensor.full([rows], 1, x.dtype, 'activation', x.device);
  native.linearForward(y.handle, ones.handle, bias.handle, NONE, NONE, rows, 1, dim);
  native.add(y.handle, y.handle, x.handle);
  return record('add_bias', y, [x, bias], (saved, [needsX, needsBias]) => {
    const kept = needsBias ? saved.keep(ones) : undefined;
    return (dy) => [
      needsX ? dy.detach() : undefined,
      kept &&
        writeGrad(bias, (target, accumulate) =>
          native.linearBackwardWeight(target, NONE, dy.handle, kept.handle, rows, 1, dim, accumulate),
        ),
    ];
  });
}
