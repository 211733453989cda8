// SwiGLU and GELU.
import { native } from '../../native.ts';
import type { Tensor } from '../../tensor/tensor.ts';
import { gradient, output, record } from '../record.ts';

/** silu(gate) · up, element by element. */
export function swiglu(gate: Tensor, up: Tensor): Tensor {
  const y = output(gate.shape, gate.dtype, gate.device);
  native.swigluForward(y.handle, gate.handle, up.handle);
  return record('swiglu', y, [gate, up], (saved) => {
    const [keptGate, keptUp] = [saved.keep(gate), saved.keep(up)];
    y.remake = (into) => native.swigluForward(into.handle, keptGate.handle, keptUp.handle);
    return (dy) => {
      const [dGate, dUp] = [gradient(gate.shape, gate.dtype, gate.device), gradient(up.shape, up.dtype, up.device)];
      native.swigluBackward(dGate.handle, dUp.handle, dy.handle, keptGate.handle, keptUp.handle);
      return [dGate, dUp];
    };
  });
}

/** GELU by erf, as torch.nn.functional.gelu; its approximation with 'tanh'. */
export function gelu(x: Tensor, approximate: 'none' | 'tanh' = 'none'): Tensor {
  const tanh = approximate === 'tanh';
  const y = output(x.shape, x.dtype, x.device);
  native.geluForward(y.handle, x.handle, tanh);
  return record('gelu', y, [x], (saved) => {
    const kept = saved.keep(x);
    y.remake = (into) => native.geluForward(into.handle, kept.handle, tanh);
    return (dy) => {
      const dx = gradient(x.shape, x.dtype, x.device);
      native.geluBackward(dx.handle, dy.handle, kept.handle, tanh);
      return [dx];
    };
  });
}
