// Rotary position embedding: the cos/sin table of a batch, and the rotation of queries and keys by it.
import { native } from '../../native.ts';
import type { Tensor } from '../../tensor/tensor.ts';
import { gradient, output, record } from '../record.ts';

export interface RopeTable {
  /** (rows, rotary / 2) float32 */
  cos: Tensor;
  /** (rows, rotary / 2) float32 */
  sin: Tensor;
}

/** positions (rows) int64, invFreq (rotary / 2) float32. */
export function ropeTable(positions: Tensor, invFreq: Tensor, attentionFactor = 1): RopeTable {
  const [rows, half] = [positions.numel, invFreq.numel];
  const [cos, sin] = [
    output([rows, half], 'float32', positions.device),
    output([rows, half], 'float32', positions.device),
  ];
  native.ropeTable(cos.handle, sin.handle, positions.handle, invFreq.handle, rows, half, attentionFactor);
  return { cos, sin };
}

/** x (rows, heads · headDim) rotated by half-rotation on the first 2 · table.cos.size(1) elements of each head. */
export function rope(x: Tensor, table: RopeTable, heads: number): Tensor {
  const rows = table.cos.size(0);
  const headDim = x.numel / rows / heads;
  const rotary = 2 * table.cos.size(1);
  const y = output(x.shape, x.dtype, x.device);
  native.rope(y.handle, x.handle, table.cos.handle, table.sin.handle, rows, heads, headDim, rotary, false);
  return record('rope', y, [x], (saved) => {
    const [cos, sin] = [saved.keep(table.cos), saved.keep(table.sin)];
    return (dy) => {
      const dx = gradient(x.shape, x.dtype, x.device);
      native.rope(dx.handle, dy.handle, cos.handle, sin.handle, rows, heads, headDim, rotary, true);
      return [dx];
    };
  });
}
