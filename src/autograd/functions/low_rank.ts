// The update of LoRA: a product of two small matrices, added to what a linear layer gave.
import { NONE, native } from '../../native.ts';
import type { DType } from '../../tensor/dtype.ts';
import type { TakeGrad } from '../../tensor/node.ts';
import { track } from '../../tensor/scope.ts';
import type { Tensor } from '../../tensor/tensor.ts';
import { addingGrad, gradient, keepOrRemake, output, record, writeGrad } from '../record.ts';

/**
 * y + factor · (x aᵀ) bᵀ, in place of `y` (..., out), which nothing else may use: x (..., in), a (r, in), b (out, r). Where a and
 * b have another dtype than x, the product is made in theirs. Mirrors the forward of PEFT's lora.Linear.
 */
export function addLowRank(y: Tensor, x: Tensor, a: Tensor, b: Tensor, factor: number): Tensor {
  const [rank, inFeatures, outFeatures] = [a.size(0), a.size(1), b.size(0)];
  if (x.size(-1) !== inFeatures || y.size(-1) !== outFeatures || b.size(1) !== rank)
    throw new RangeError(`addLowRank: a [${a.shape}] and b [${b.shape}] do not fit x [${x.shape}] and y [${y.shape}]`);
  const rows = x.numel / inFeatures;
  const inner = output([rows, rank], a.dtype, x.device);
  const left = as(a.dtype, x);
  native.linearForward(inner.handle, left.handle, a.handle, NONE, NONE, rows, inFeatures, rank);
  native.scale(inner.handle, inner.handle, NONE, factor, false);
  if (y.dtype === b.dtype)
    native.linearForward(y.handle, inner.handle, b.handle, NONE, y.handle, rows, rank, outFeatures);
  else {
    using product = gradient(y.shape, b.dtype, y.device);
    native.linearForward(product.handle, inner.handle, b.handle, NONE, NONE, rows, rank, outFeatures);
    native.add(y.handle, y.handle, product.handle);
  }
  if (left !== x) left.dispose();
  const sum = y.detach();
  track(sum);
  return record('low_rank', sum, [y, x, a, b], (saved, [needsY, needsX, needsA, needsB]) => {
    const [xAgain, keptInner] = [needsA ? keepOrRemake(saved, x) : undefined, needsB ? saved.keep(inner) : undefined];
    const [keptA, keptB] = [saved.keep(a), saved.keep(b)];
    return (dOut, take) => {
      const dy = as(b.dtype, dOut);
      const dB =
        keptInner &&
        writeGrad(b, (target, accumulate) =>
          native.linearBackwardWeight(target, NONE, dy.handle, keptInner.handle, rows, rank, outFeatures, accumulate),
        );
      using dInner = gradient([rows, rank], a.dtype, x.device);
      native.linearBackwardInput(dInner.handle, dy.handle, keptB.handle, NONE, rows, rank, outFeatures);
      native.scale(dInner.handle, dInner.handle, NONE, factor, false);
      if (dy !== dOut) dy.dispose();
      let dA: Tensor | undefined;
      if (xAgain) {
        using again = xAgain();
        const left = as(a.dtype, again);
        dA = writeGrad(a, (target, accumulate) =>
          native.linearBackwardWeight(target, NONE, dInner.handle, left.handle, rows, inFeatures, rank, accumulate),
        );
        if (left !== again) left.dispose();
      }
      const dX = needsX
        ? inputGradient(x, a.dtype, take, (to, earlier) => {
            const [dx, added] = [to.handle, earlier?.handle ?? NONE];
            native.linearBackwardInput(dx, dInner.handle, keptA.handle, added, rows, inFeatures, rank);
          })
        : undefined;
      return [needsY ? dOut.detach() : undefined, dX, dA, dB];
    };
  });
}

/** The gradient of x, made in `dtype`; where no cast stands between, it is added to what other uses of x have left. */
function inputGradient(
  x: Tensor,
  dtype: DType,
  take: TakeGrad,
  write: (to: Tensor, earlier: Tensor | undefined) => void,
): Tensor {
  if (x.dtype === dtype) return addingGrad(x, 1, take, write);
  const made = gradient(x.shape, dtype, x.device);
  write(made, undefined);
  const cast = as(x.dtype, made);
  made.dispose();
  return cast;
}

/** `tensor` itself, or a cast copy that the caller disposes. */
function as(dtype: DType, tensor: Tensor): Tensor {
  if (tensor.dtype === dtype) return tensor;
  const copy = gradient(tensor.shape, dtype, tensor.device);
  copy.copyFrom(tensor);
  return copy;
}
