// Gradients against finite differences, as torch.autograd.gradcheck, for float32.

import { noGrad } from '../tensor/grad_mode.ts';
import { scope } from '../tensor/scope.ts';
import { Tensor } from '../tensor/tensor.ts';

export interface GradCheckOptions {
  /** Of the differences. Default 1e-2: they are of fourth order, so the step may be large enough for float32. */
  step?: number;
  /** Largest |got − want| / (1 + |want|). Default 2e-3. */
  tolerance?: number;
  /** How many elements of each input are tried, evenly spread. Default 12. */
  elements?: number;
}

/**
 * Throws where a gradient that backward gives is not the one that central differences of `fn` give, naming input and element.
 * `fn` must be a function of its inputs alone, smooth near their values. Inputs are float32; those that require grad are
 * checked, and their `.grad` stays as it was.
 */
export function gradCheck(
  fn: (...inputs: Tensor[]) => Tensor,
  inputs: readonly Tensor[],
  { step = 1e-2, tolerance = 2e-3, elements = 12 }: GradCheckOptions = {},
): void {
  scope(() => {
    const leaves = inputs.map((input) => Tensor.from(input.dataSync(), input.shape, input));
    const out = fn(...leaves);
    // Every element of the result has a weight of its own, so that no error in one hides behind another.
    const weights = Float32Array.from({ length: out.numel }, (_, i) => Math.cos(1 + 2 * i));
    out.backward(Tensor.from(weights, out.shape, { dtype: out.dtype, device: out.device }));
    for (const [which, leaf] of leaves.entries()) {
      if (!leaf.requiresGrad) continue;
      const values = leaf.dataSync() as Float32Array;
      const got = leaf.grad?.dataSync() ?? new Float32Array(leaf.numel);
      leaf.grad?.dispose();
      for (let i = 0; i < values.length; i += Math.ceil(values.length / elements)) {
        const at = (offset: number): number =>
          scope(() => {
            const moved = Float32Array.from(values);
            moved[i] = values[i]! + offset;
            const there = leaves.map((other, k) =>
              k === which ? Tensor.from(moved, leaf.shape, { device: leaf.device }) : other,
            );
            const result = noGrad(() => fn(...there)).dataSync() as Float32Array;
            return result.reduce((sum, y, k) => sum + y * weights[k]!, 0);
          });
        const want = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step);
        if (!(Math.abs(Number(got[i]) - want) / (1 + Math.abs(want)) <= tolerance)) {
          throw new Error(
            `gradCheck: the gradient of element ${i} of input ${which + 1} is ${got[i]}, but differences give ${want}`,
          );
        }
      }
    }
  });
}
