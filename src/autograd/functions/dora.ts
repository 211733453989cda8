// DoRA: a product whose columns get trained lengths.
import { NONE, native } from '../../native.ts';
import { Tensor } from '../../tensor/tensor.ts';
import { gradient, output, record, writeGrad } from '../record.ts';

/**
 * x (..., out) · magnitude (out) / √squares (out, float32), column by column. The squares are no part of the graph, as PEFT has them.
 */
export function scaleColumns(x: Tensor, magnitude: Tensor, squares: Tensor): Tensor {
  const dim = magnitude.size(0);
  if (x.size(-1) !== dim || squares.numel !== dim)
    throw new RangeError(`scaleColumns: ${dim} magnitudes and ${squares.numel} squares do not fit x [${x.shape}]`);
  const rows = x.numel / dim;
  const y = output(x.shape, x.dtype, x.device);
  native.doraForward(y.handle, x.handle, magnitude.handle, squares.handle, rows, dim);
  return record('scale_columns', y, [x, magnitude], (saved, [needsX, needsMagnitude]) => {
    const keptX = needsMagnitude ? saved.keep(x) : undefined;
    const [keptMagnitude, keptSquares] = [saved.keep(magnitude), saved.keep(squares)];
    return (dy) => {
      const dMagnitude =
        keptX &&
        writeGrad(magnitude, (target, accumulate) =>
          native.doraBackward(target, dy.handle, keptX.handle, keptSquares.handle, rows, dim, accumulate),
        );
      if (!needsX) return [undefined, dMagnitude];
      const dx = gradient(x.shape, x.dtype, x.device);
      native.doraForward(dx.handle, dy.handle, keptMagnitude.handle, keptSquares.handle, rows, dim);
      return [dx, dMagnitude];
    };
  });
}

/**
 * Σ over columns of (w + factor · b a)², w (out, in), a (r, in), b (out, r): (out) float32. Records no graph; the caller disposes it.
 */
export function squaresOfRows(w: Tensor, a: Tensor, b: Tensor, factor: number): Tensor {
  const [rows, cols] = [w.size(0), w.size(1)];
  using update = lowRankProduct(a, b, factor, w);
  const squares = Tensor.empty([rows], 'float32', 'activation', w.device);
  native.rowSquares(squares.handle, w.handle, update.handle, rows, cols);
  return squares;
}

/** factor · b a (out, in), in the dtype of `w`. Records no graph; the caller disposes it. */
export function lowRankProduct(a: Tensor, b: Tensor, factor: number, w: { readonly dtype: Tensor['dtype'] }): Tensor {
  const [out, rank, inFeatures] = [b.size(0), a.size(0), a.size(1)];
  const product = Tensor.empty([out, inFeatures], b.dtype, 'activation', b.device);
  native.linearBackwardInput(product.handle, b.handle, a.handle, NONE, out, inFeatures, rank);
  native.scale(product.handle, product.handle, NONE, factor, false);
  if (product.dtype === w.dtype) return product;
  const cast = Tensor.empty(product.shape, w.dtype, 'activation', b.device);
  cast.copyFrom(product);
  product.dispose();
  return cast;
}
