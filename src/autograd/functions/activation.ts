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

/** The same of gate and up from one projection: gateUp (rows, 2 · inner) holds both of each row, one after the other. */
export function packedSwiglu(gateUp: Tensor): Tensor {
  const inner = gateUp.size(-1) / 2;
  const rows = gateUp.numel / (2 * inner);
  const y = output([...gateUp.shape.slice(0, -1), inner], gateUp.dtype, gateUp.device);
  native.packedSwigluForward(y.handle, gateUp.handle, rows, inner);
  return record('packed_swiglu', y, [gateUp], (saved) => {
    const kept = saved.keep(gateUp);
    return (dy) => {
      const dGateUp = gradient(gateUp.shape, gateUp.dtype, gateUp.device);
      native.packedSwigluBackward(dGateUp.handle, dy.handle, kept.handle, rows, inner);
      return [dGateUp];
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
