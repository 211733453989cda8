// LayerNorm with weight and bias, as torch.nn.functional.layer_norm over the last dimension.
import { type Handle, NONE, native } from '../../native.ts';
import { Tensor } from '../../tensor/tensor.ts';
import { gradient, output, record, writeGrad } from '../record.ts';

/** x (..., dim), weight and bias (dim): y (..., dim). Statistics in float32. */
export function layerNorm(x: Tensor, weight: Tensor, bias: Tensor, eps: number): Tensor {
  const dim = weight.size(0);
  const rows = x.numel / dim;
  const y = output(x.shape, x.dtype, x.device);
  const statistic = (): Tensor => Tensor.empty([rows], 'float32', 'activation', x.device);
  const [mean, rstd] = [statistic(), statistic()];
  native.layerNormForward(y.handle, mean.handle, rstd.handle, x.handle, weight.handle, bias.handle, rows, dim, eps);
  const result = record('layer_norm', y, [x, weight, bias], (saved, [, needsWeight, needsBias]) => {
    const kept = [x, weight, mean, rstd].map((tensor) => saved.keep(tensor));
    const keptBias = saved.keep(bias);
    y.remake = (into) => {
      const [of, by, mean_, rstd_] = kept.map(({ handle }) => handle) as [Handle, Handle, Handle, Handle];
      native.layerNormForward(into.handle, mean_, rstd_, of, by, keptBias.handle, rows, dim, eps);
    };
    return (dy) => {
      const dx = gradient(x.shape, x.dtype, x.device);
      const [x_, w_, mean_, rstd_] = kept.map((tensor) => tensor.handle) as [Handle, Handle, Handle, Handle];
      // One pass gives all three gradients, so one sink call nests in the other.
      let dBias: Tensor | undefined;
      const withWeight = (dw: Handle, addW: boolean): void => {
        const run = (db: Handle, addB: boolean): void =>
          native.layerNormBackward(dx.handle, dw, db, dy.handle, x_, w_, mean_, rstd_, rows, dim, addW, addB);
        if (needsBias) dBias = writeGrad(bias, run);
        else run(NONE, false);
      };
      const dWeight = needsWeight ? writeGrad(weight, withWeight) : void withWeight(NONE, false);
      return [dx, dWeight ?? undefined, dBias];
    };
  });
  mean.dispose();
  rstd.dispose();
  return result;
}
