// Causal attention over packed sequences (cpp/ops/attention.h): never a T×T matrix.
import { native } from '../../native.ts';
import { Tensor } from '../../tensor/tensor.ts';
import { gradient, output, record } from '../record.ts';

export interface AttentionShape {
  heads: number;
  kvHeads: number;
  headDim: number;
  /** Default headDim^-0.5. */
  scale?: number | undefined;
  /** Sliding window in keys; 0 or absent: all earlier keys. */
  window?: number | undefined;
}

/**
 * q (rows, heads · headDim), k and v (keyRows, kvHeads · headDim), cuQ and cuK int32 (sequences + 1): the row offsets of the
 * sequences. Result (rows, heads · headDim). With fewer queries than keys the last query is aligned to the last key;
 * backward is defined when cuQ and cuK are the same tensor.
 */
export function attention(q: Tensor, k: Tensor, v: Tensor, cuQ: Tensor, cuK: Tensor, shape: AttentionShape): Tensor {
  const { heads, kvHeads, headDim, scale = headDim ** -0.5, window = 0 } = shape;
  const rows = q.numel / (heads * headDim);
  const keyRows = k.numel / (kvHeads * headDim);
  const sequences = cuQ.numel - 1;
  const o = output(q.shape, q.dtype);
  const lse = Tensor.empty([heads, rows], 'float32', 'activation');
  native.attentionForward(
    o.handle,
    lse.handle,
    q.handle,
    k.handle,
    v.handle,
    cuQ.handle,
    cuK.handle,
    rows,
    keyRows,
    sequences,
    heads,
    kvHeads,
    headDim,
    window,
    scale,
  );
  const result = record('attention', o, [q, k, v], (saved) => {
    const kept = [q, k, v, o, lse, cuQ].map((tensor) => saved.keep(tensor));
    return (dO) => {
      const [dq, dk, dv] = [gradient(q.shape, q.dtype), gradient(k.shape, k.dtype), gradient(v.shape, v.dtype)];
      const [q_, k_, v_, o_, lse_, cu_] = kept.map((tensor) => tensor.handle) as [
        number,
        number,
        number,
        number,
        number,
        number,
      ];
      native.attentionBackward(
        dq.handle,
        dk.handle,
        dv.handle,
        dO.handle,
        o_,
        q_,
        k_,
        v_,
        lse_,
        cu_,
        rows,
        sequences,
        heads,
        kvHeads,
        headDim,
        window,
        scale,
      );
      return [dq, dk, dv];
    };
  });
  lse.dispose();
  return result;
}
