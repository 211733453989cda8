// Linear: y = x wᵀ + b, as torch.nn.functional.linear.
import { NONE, native } from '../../native.ts';
import type { DType } from '../../tensor/dtype.ts';
import { fuses } from '../../tensor/fusions.ts';
import { quantizedLayoutOf } from '../../tensor/quantized.ts';
import { Tensor } from '../../tensor/tensor.ts';
import { defer } from '../deferred.ts';
import { keptResults } from '../recompute.ts';
import { addingGrad, gradient, output, record, writeGrad } from '../record.ts';
import { add } from './arithmetic.ts';
import { quantizedLinear } from './quantized_linear.ts';

/**
 * x (..., in), weight (out, in), bias (out): y (..., out). `outDtype` may be float32 for bfloat16 operands (logits).
 * `deferWeightGrad`, for parameters only: backward leaves their gradients to the next flush (autograd/deferred.ts).
 * `residual`, of the result's shape and dtype, is added. Throws a RangeError when the features disagree.
 */
export function linear(
  x: Tensor,
  weight: Tensor,
  bias?: Tensor,
  outDtype: DType = x.dtype,
  deferWeightGrad = false,
  residual?: Tensor,
): Tensor {
  const layout = quantizedLayoutOf(weight);
  if (layout) return quantizedLinear(x, weight, layout, bias, outDtype, residual);
  if (residual && !fuses(x.device, 'sums')) return add(residual, linear(x, weight, bias, outDtype, deferWeightGrad));
  const [outFeatures, inFeatures] = [weight.size(0), weight.size(1)];
  if (x.size(-1) !== inFeatures) {
    throw new RangeError(`linear: weight [${weight.shape}] wants ${inFeatures} input features but x is [${x.shape}]`);
  }
  const rows = x.numel / inFeatures;
  const shape = [...x.shape.slice(0, -1), outFeatures];
  const gemm = (y: Tensor): void =>
    native.linearForward(
      y.handle,
      x.handle,
      weight.handle,
      bias?.handle ?? NONE,
      residual?.handle ?? NONE,
      rows,
      inFeatures,
      outFeatures,
    );
  let y: Tensor;
  // Between the parts of a layer: kept, it spares the GEMMs of the first part.
  if (residual)
    [y] = keptResults(
      () => [Tensor.empty(shape, outDtype, 'activation', x.device)],
      ([sum]) => gemm(sum!),
    ) as [Tensor];
  else {
    y = output(shape, outDtype, x.device);
    gemm(y);
  }
  return record('linear', y, [x, weight, bias, residual], (saved, [needsX, needsWeight, needsBias, needsResidual]) => {
    const keptX = needsWeight || needsBias ? saved.keep(x) : undefined;
    const keptWeight = saved.keep(weight);
    return (dOut, take) => {
      let dy = dOut;
      if (dy.dtype !== x.dtype) {
        dy = gradient(dOut.shape, x.dtype, dOut.device);
        dy.copyFrom(dOut);
      }
      let dx: Tensor | undefined;
      if (needsX) {
        dx = addingGrad(x, 0, take, (to, earlier) =>
          native.linearBackwardInput(
            to.handle,
            dy.handle,
            keptWeight.handle,
            earlier?.handle ?? NONE,
            rows,
            inFeatures,
            outFeatures,
          ),
        );
      }
      const weightGrads = (): [Tensor | undefined, Tensor | undefined] => {
        const gemms = (dw: number, db: number, accumulate: boolean): void =>
          native.linearBackwardWeight(dw, db, dyRows.handle, xRows!.handle, rows, inFeatures, outFeatures, accumulate);
        return writeWeightGrads(needsWeight ? weight : undefined, needsBias ? bias : undefined, weight, gemms);
      };
      const defers = deferWeightGrad && (needsWeight || needsBias);
      // What is deferred outlives what backward keeps.
      const dyRows = defers ? dy.detach() : dy;
      const xRows = defers ? keptX!.detach() : keptX;
      let grads: [Tensor | undefined, Tensor | undefined] = [undefined, undefined];
      if (defers)
        defer(() => {
          weightGrads();
          dyRows.dispose();
          xRows!.dispose();
        });
      else grads = weightGrads();
      if (dy !== dOut) dy.dispose();
      return [dx, ...grads, needsResidual ? dOut.detach() : undefined];
    };
  });
}

// The bias gradient comes out of the same pass as the weight's, so one sink call nests in the other.
function writeWeightGrads(
  weight: Tensor | undefined,
  bias: Tensor | undefined,
  shape: Tensor,
  gemms: (dw: number, db: number, accumulate: boolean) => void,
): [Tensor | undefined, Tensor | undefined] {
  let dBias: Tensor | undefined;
  if (!weight) {
    if (!bias) return [undefined, undefined];
    using unused = gradient(shape.shape, shape.dtype, shape.device);
    dBias = writeGrad(bias, (db, accumulate) => gemms(unused.handle, db, accumulate));
    return [undefined, dBias];
  }
  const dWeight = writeGrad(weight, (dw, accumulate) => {
    if (!bias) gemms(dw, NONE, accumulate);
    else {
      dBias = writeGrad(bias, (db, accumulateBias) => {
        if (accumulateBias !== accumulate) throw new Error('linear: weight and bias gradients are in different states');
        gemms(dw, db, accumulate);
      });
    }
  });
  return [dWeight, dBias];
}
