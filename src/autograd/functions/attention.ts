// Causal attention over packed sequences (cpp/ops/attention.h): never a T×T matrix.
import { type Handle, native } from '../../native.ts';
import { Tensor } from '../../tensor/tensor.ts';
import { keptResults } from '../recompute.ts';
import { gradient, record, type Saved } from '../record.ts';
import type { RopeTable } from './rope.ts';

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
  const { o, lse } = run(q, k, v, cuQ, cuK, shape);
  const result = record('attention', o, [q, k, v], (saved) => gradients(saved, [q, k, v, o, lse, cuQ], shape));
  lse.dispose();
  return result;
}

/** Adds new keys and values to those of earlier tokens, and gives all of them. */
export type ExtendCache = (k: Tensor, v: Tensor) => [Tensor, Tensor];

/**
 * Attention from a fused projection: qkv (rows, heads · 3 · headDim) holds [query | key | value] of each head, as GPT-NeoX has
 * it. Queries and keys are rotated by `table`. Otherwise as `attention`, with as many key and value heads as heads.
 */
export function qkvAttention(
  qkv: Tensor,
  table: RopeTable,
  cuQ: Tensor,
  cuK: Tensor,
  shape: Omit<AttentionShape, 'kvHeads'>,
  extend?: ExtendCache,
): Tensor {
  const { heads, headDim } = shape;
  const rows = table.cos.size(0);
  const rotary = 2 * table.cos.size(1);
  const part = (): Tensor => Tensor.empty([rows, heads * headDim], qkv.dtype, 'activation', qkv.device);
  const [q, k, v] = [part(), part(), part()];
  native.splitQkv(q.handle, k.handle, v.handle, qkv.handle, rows, heads, headDim);
  for (const { handle } of [q, k])
    native.rope(handle, handle, table.cos.handle, table.sin.handle, rows, heads, headDim, rotary, false);
  const [keys, values] = extend ? extend(k, v) : [k, v];
  const all = { ...shape, kvHeads: heads };
  const { o, lse } = run(q, keys, values, cuQ, cuK, all);
  const result = record('qkv_attention', o, [qkv], (saved) => {
    const [cos, sin] = [saved.keep(table.cos), saved.keep(table.sin)];
    const backward = gradients(saved, [q, keys, values, o, lse, cuQ], all);
    return (dO) => {
      const [dq, dk, dv] = backward(dO);
      for (const { handle } of [dq, dk])
        native.rope(handle, handle, cos.handle, sin.handle, rows, heads, headDim, rotary, true);
      const dQkv = gradient(qkv.shape, qkv.dtype, qkv.device);
      native.mergeQkv(dQkv.handle, dq.handle, dk.handle, dv.handle, rows, heads, headDim);
      for (const tensor of [dq, dk, dv]) tensor.dispose();
      return [dQkv];
    };
  });
  for (const tensor of new Set([q, k, v, keys, values, lse])) tensor.dispose();
  return result;
}

function run(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  cuQ: Tensor,
  cuK: Tensor,
  shape: AttentionShape,
): { o: Tensor; lse: Tensor } {
  const { heads, kvHeads, headDim, scale = headDim ** -0.5, window = 0 } = shape;
  const rows = q.numel / (heads * headDim);
  const keyRows = k.numel / (kvHeads * headDim);
  const allocate = (): [o: Tensor, lse: Tensor] => [
    Tensor.empty(q.shape, q.dtype, 'activation', q.device),
    Tensor.empty([heads, rows], 'float32', 'activation', q.device),
  ];
  const [o, lse] = keptResults(allocate, ([o, lse]) =>
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
      cuQ.numel - 1,
      heads,
      kvHeads,
      headDim,
      window,
      scale,
    ),
  );
  return { o, lse };
}

type Operands = readonly [q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, cu: Tensor];

/** Keeps the operands; the function turns the gradient of o into those of q, k and v. */
function gradients(
  saved: Saved,
  operands: Operands,
  shape: AttentionShape,
): (dO: Tensor) => [dq: Tensor, dk: Tensor, dv: Tensor] {
  const { heads, kvHeads, headDim, scale = headDim ** -0.5, window = 0 } = shape;
  const kept = operands.map((tensor) => saved.keep(tensor));
  const [{ shape: wide, dtype, device }, { shape: narrow }, , , lse, cu] = operands;
  const [rows, sequences] = [lse.numel / heads, cu.numel - 1];
  return (dO) => {
    const [dq, dk, dv] = [wide, narrow, narrow].map((shape) => gradient(shape, dtype, device)) as [
      Tensor,
      Tensor,
      Tensor,
    ];
    const [q_, k_, v_, o_, lse_, cu_] = kept.map((tensor) => tensor.handle) as [
      Handle,
      Handle,
      Handle,
      Handle,
      Handle,
      Handle,
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
}
