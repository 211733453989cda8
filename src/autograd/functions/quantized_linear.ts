// Linear with a frozen weight of few bits: what the weight stands for, in the dtype of x, is made tile by tile inside the GEMM, or as
// a whole for as long as the GEMM runs on devices, whose own GEMMs want it so.
import { type Handle, NONE, native } from '../../native.ts';
import type { DType } from '../../tensor/dtype.ts';
import { fuses } from '../../tensor/fusions.ts';
import type { QuantizedLayout } from '../../tensor/quantized.ts';
import { Tensor } from '../../tensor/tensor.ts';
import { keptResults } from '../recompute.ts';
import { addingGrad, gradient, output, record, writeGrad } from '../record.ts';
import { add } from './arithmetic.ts';

type Operands = QuantizedLayout['operands'];

/** As linear(), with the bits of linear() of the weight that is stored. The weight gets no gradient. */
export function quantizedLinear(
  x: Tensor,
  weight: Tensor,
  layout: QuantizedLayout,
  bias: Tensor | undefined,
  outDtype: DType,
  residual: Tensor | undefined,
): Tensor {
  if (residual && !fuses(x.device, 'sums'))
    return add(residual, quantizedLinear(x, weight, layout, bias, outDtype, undefined));
  const [outFeatures, inFeatures] = [weight.size(0), weight.size(1)];
  if (x.size(-1) !== inFeatures)
    throw new RangeError(`linear: weight [${weight.shape}] wants ${inFeatures} input features but x is [${x.shape}]`);
  const rows = x.numel / inFeatures;
  const sizes = [rows, inFeatures, outFeatures] as const;
  const shape = [...x.shape.slice(0, -1), outFeatures];
  const gemm = (y: Tensor): void => {
    const [b, onto] = [bias?.handle ?? NONE, residual?.handle ?? NONE];
    if (x.device === 'cpu')
      native.quantizedLinearForward(y.handle, x.handle, weight.handle, b, onto, ...sizes, ...layout.operands);
    else
      widened(weight, layout.operands, x.dtype, (w) => native.linearForward(y.handle, x.handle, w, b, onto, ...sizes));
  };
  let y: Tensor;
  if (residual)
    [y] = keptResults(
      () => [Tensor.empty(shape, outDtype, 'activation', x.device)],
      ([sum]) => gemm(sum!),
    ) as [Tensor];
  else {
    y = output(shape, outDtype, x.device);
    gemm(y);
  }
  return record('linear', y, [x, bias, residual], (saved, [needsX, needsBias, needsResidual]) => {
    const kept = saved.keep(weight);
    return (dOut, take) => {
      let dy = dOut;
      if (dy.dtype !== x.dtype) {
        dy = gradient(dOut.shape, x.dtype, dOut.device);
        dy.copyFrom(dOut);
      }
      let dx: Tensor | undefined;
      if (needsX)
        dx = addingGrad(x, 0, take, (to, earlier) => {
          const before = earlier?.handle ?? NONE;
          if (dy.device === 'cpu')
            native.quantizedLinearBackwardInput(
              to.handle,
              dy.handle,
              kept.handle,
              before,
              ...sizes,
              ...layout.operands,
            );
          else
            widened(kept, layout.operands, dy.dtype, (w) =>
              native.linearBackwardInput(to.handle, dy.handle, w, before, ...sizes),
            );
        });
      const dBias = needsBias ? biasGrad(bias!, dy, rows, outFeatures) : undefined;
      if (dy !== dOut) dy.dispose();
      return [dx, dBias, needsResidual ? dOut.detach() : undefined];
    };
  });
}

/** One scratch weight, whose memory is free again when the GEMM has run. */
function widened(weight: Tensor, operands: Operands, dtype: DType, use: (w: Handle) => void): void {
  using values = Tensor.empty(weight.shape, dtype, 'unshard', weight.device);
  native.dequantizeWeight(values.handle, weight.handle, ...operands);
  use(values.handle);
}

// The sums of columns come with a weight's gradient alone: one of a single column, of nothing.
function biasGrad(bias: Tensor, dy: Tensor, rows: number, outFeatures: number): Tensor | undefined {
  using x = Tensor.zeros([rows], dy.dtype, 'other', dy.device);
  return writeGrad(bias, (db, accumulate) => {
    using dw = Tensor.zeros([outFeatures], bias.dtype, 'other', dy.device);
    native.linearBackwardWeight(dw.handle, db, dy.handle, x.handle, rows, 1, outFeatures, accumulate);
  });
}
