// RMSNorm as Llama has it: normalise in float32, cast, then multiply by the weight.
import { NONE, native } from '../../native.ts';
import { Tensor } from '../../tensor/tensor.ts';
import { addingGrad, output, record, writeGrad } from '../record.ts';

/** x (..., dim), weight (dim): y (..., dim). */
export function rmsNorm(x: Tensor, weight: Tensor, eps: number): Tensor {
  const dim = weight.size(0);
  const rows = x.numel / dim;
  const y = output(x.shape, x.dtype, x.device);
  const rstd = Tensor.empty([rows], 'float32', 'activation', x.device);
  const forward = (into: Tensor, of: Tensor, by: Tensor, statistic: Tensor): void =>
    native.rmsNormForward(into.handle, statistic.handle, of.handle, by.handle, rows, dim, eps);
  forward(y, x, weight, rstd);
  const result = record('rms_norm', y, [x, weight], (saved, [, needsWeight]) => {
    const [keptX, keptWeight, keptRstd] = [saved.keep(x), saved.keep(weight), saved.keep(rstd)];
    y.remake = (into) => forward(into, keptX, keptWeight, keptRstd);
    return (dy, take) => {
      let dWeight: Tensor | undefined;
      const dx = addingGrad(x, 0, take, (to, earlier) => {
        const run = (dw: number, accumulate: boolean): void =>
          native.rmsNormBackward(
            to.handle,
            dw,
            dy.handle,
            keptX.handle,
            keptWeight.handle,
            keptRstd.handle,
            earlier?.handle ?? NONE,
            rows,
            dim,
            accumulate,
          );
        if (needsWeight) dWeight = writeGrad(weight, run);
        else run(NONE, false);
      });
      return [dx, dWeight];
    };
  });
  rstd.dispose();
  return result;
}
