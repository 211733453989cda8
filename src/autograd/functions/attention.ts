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

/** How queries, keys and values lie in the result of one projection. Queries and keys are rotated by the table on the way. */
interface ProjectionLayout {
  split(q: Handle, k: Handle, v: Handle, qkv: Handle, cos: Handle, sin: Handle, sizes: Sizes): void;
  /** The gradient of split; what it reads may be overwritten. */
  merge(dQkv: Handle, dq: Handle, dk: Handle, dv: Handle, cos: Handle, sin: Handle, sizes: Sizes): void;
}

interface Sizes {
  rows: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  /** Elements of a head that are rotated. */
  rotary: number;
}

const byHead: ProjectionLayout = {
  split(q, k, v, qkv, cos, sin, { rows, heads, headDim, rotary }) {
    native.splitQkv(q, k, v, qkv, rows, heads, headDim);
    for (const part of [q, k]) native.rope(part, part, cos, sin, rows, heads, headDim, rotary, false);
  },
  merge(dQkv, dq, dk, dv, cos, sin, { rows, heads, headDim, rotary }) {
    for (const part of [dq, dk]) native.rope(part, part, cos, sin, rows, heads, headDim, rotary, true);
    native.mergeQkv(dQkv, dq, dk, dv, rows, heads, headDim);
  },
};

const oneAfterTheOther: ProjectionLayout = {
  split(q, k, v, qkv, cos, sin, { rows, heads, kvHeads, headDim, rotary }) {
    native.splitRope(q, k, v, qkv, cos, sin, rows, heads, kvHeads, headDim, rotary);
  },
  merge(dQkv, dq, dk, dv, cos, sin, { rows, heads, kvHeads, headDim, rotary }) {
    native.mergeRope(dQkv, dq, dk, dv, cos, sin, rows, heads, kvHeads, headDim, rotary);
  },
};

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
  return attentionOf('qkv_attention', byHead, qkv, table, cuQ, cuK, { ...shape, kvHeads: shape.heads }, extend);
}

/** The same of qkv (rows, (heads + 2 · kvHeads) · headDim), which holds all queries of a row, then all keys, then all values. */
export function packedAttention(
  qkv: Tensor,
  table: RopeTable,
  cuQ: Tensor,
  cuK: Tensor,
  shape: AttentionShape,
  extend?: ExtendCache,
): Tensor {
  return attentionOf('packed_attention', oneAfterTheOther, qkv, table, cuQ, cuK, shape, extend);
}

function attentionOf(
  name: string,
  layout: ProjectionLayout,
  qkv: Tensor,
  table: RopeTable,
  cuQ: Tensor,
  cuK: Tensor,
  shape: AttentionShape,
  extend: ExtendCache | undefined,
): Tensor {
  const { heads, kvHeads, headDim } = shape;
  const sizes: Sizes = { rows: table.cos.size(0), heads, kvHeads, headDim, rotary: 2 * table.cos.size(1) };
  const part = (of: number): Tensor => Tensor.empty([sizes.rows, of * headDim], qkv.dtype, 'activation', qkv.device);
  const [q, k, v] = [part(heads), part(kvHeads), part(kvHeads)];
  layout.split(q.handle, k.handle, v.handle, qkv.handle, table.cos.handle, table.sin.handle, sizes);
  const [keys, values] = extend ? extend(k, v) : [k, v];
  const { o, lse } = run(q, keys, values, cuQ, cuK, shape);
  const result = record(name, o, [qkv], (saved) => {
    const [cos, sin] = [saved.keep(table.cos), saved.keep(table.sin)];
    const backward = gradients(saved, [q, keys, values, o, lse, cuQ], shape);
    return (dO) => {
      const [dq, dk, dv] = backward(dO);
      const dQkv = gradient(qkv.shape, qkv.dtype, qkv.device);
      layout.merge(dQkv.handle, dq.handle, dk.handle, dv.handle, cos.handle, sin.handle, sizes);
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
