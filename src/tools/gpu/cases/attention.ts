// Attention over packed sequences, and in generation.
import { reference } from '../check.ts';
import type { Draw } from '../draw.ts';
import { floatDTypes, input, type OpCase, output } from '../operand.ts';

type Cases = (draw: Draw) => Iterable<OpCase>;

interface AttentionSizes {
  rows: number;
  heads: number;
  kvHeads: number;
  dim: number;
  sequences: number;
  window: number;
}

const attention = (
  rows: number,
  heads: number,
  kvHeads: number,
  dim: number,
  sequences = 1,
  window = 0,
): AttentionSizes => ({
  rows,
  heads,
  kvHeads,
  dim,
  sequences,
  window,
});

const attentionSizes = (draw: Draw): AttentionSizes[] =>
  draw.sizes(
    [attention(1, 1, 1, 8), attention(37, 2, 1, 24), attention(70, 2, 2, 64, 3), attention(66, 1, 1, 128, 1, 17)],
    [
      attention(1024, 8, 2, 128),
      attention(1025, 4, 4, 64, 5),
      attention(700, 4, 1, 96, 3, 128),
      attention(300, 2, 1, 256),
      attention(513, 3, 3, 80, 2),
      attention(2048, 4, 1, 64, 1, 1000),
      attention(129, 2, 2, 40, 7),
      attention(200, 2, 1, 33),
    ],
  );

const describeAttention = (a: AttentionSizes): string =>
  `${a.rows} rows in ${a.sequences}, heads ${a.heads}/${a.kvHeads}×${a.dim}${a.window ? `, window ${a.window}` : ''}`;

function attentionInputs(draw: Draw, a: AttentionSizes) {
  const [wide, narrow] = [a.rows * a.heads * a.dim, a.rows * a.kvHeads * a.dim];
  const cu = draw.borders(a.rows, a.sequences);
  return {
    q: draw.normal(wide),
    k: draw.normal(narrow),
    v: draw.normal(narrow),
    cu,
    wide,
    narrow,
    scale: 1 / Math.sqrt(a.dim),
  };
}

function* attentionForward(draw: Draw): Iterable<OpCase> {
  for (const dtype of floatDTypes) {
    for (const a of attentionSizes(draw)) {
      const { q, k, v, cu, wide, scale } = attentionInputs(draw, a);
      const borders = input('int32', cu);
      yield {
        label: describeAttention(a),
        operands: [
          output('o', dtype, wide),
          output('lse', 'float32', a.rows * a.heads),
          input(dtype, q),
          input(dtype, k),
          input(dtype, v),
          borders,
          borders,
          a.rows,
          a.rows,
          a.sequences,
          a.heads,
          a.kvHeads,
          a.dim,
          a.window,
          scale,
        ],
      };
    }
    // Generation: fewer queries than keys.
    for (const [queries, keys] of draw.sizes(
      [[1, 40]],
      [
        [1, 3000],
        [17, 1000],
      ],
    )) {
      const [heads, kvHeads, dim] = [4, 2, 64];
      yield {
        label: `${queries} queries of ${keys} keys`,
        operands: [
          output('o', dtype, queries! * heads * dim),
          output('lse', 'float32', queries! * heads),
          input(dtype, draw.normal(queries! * heads * dim)),
          input(dtype, draw.normal(keys! * kvHeads * dim)),
          input(dtype, draw.normal(keys! * kvHeads * dim)),
          input('int32', Int32Array.of(0, queries!)),
          input('int32', Int32Array.of(0, keys!)),
          queries,
          keys,
          1,
          heads,
          kvHeads,
          dim,
          0,
          1 / Math.sqrt(dim),
        ],
      };
    }
  }
}

function* attentionBackward(draw: Draw): Iterable<OpCase> {
  for (const dtype of floatDTypes)
    for (const a of attentionSizes(draw)) {
      if (a.rows === 1) continue; // its scores do not matter: the gradients of queries and keys are rounding alone
      const { q, k, v, cu, wide, narrow, scale } = attentionInputs(draw, a);
      const borders = input('int32', cu);
      const [qIn, kIn, vIn] = [input(dtype, q), input(dtype, k), input(dtype, v)];
      const sizes = [a.heads, a.kvHeads, a.dim, a.window, scale];
      const [o, lse] = reference('attention_forward', [
        output('o', dtype, wide),
        output('lse', 'float32', a.rows * a.heads),
        qIn,
        kIn,
        vIn,
        borders,
        borders,
        a.rows,
        a.rows,
        a.sequences,
        ...sizes,
      ]);
      yield {
        label: describeAttention(a),
        operands: [
          output('dq', dtype, wide),
          output('dk', dtype, narrow),
          output('dv', dtype, narrow),
          input(dtype, draw.normal(wide)),
          input(dtype, o!),
          qIn,
          kIn,
          vIn,
          input('float32', lse!),
          borders,
          a.rows,
          a.sequences,
          ...sizes,
        ],
      };
    }
}

export const attentionCases: Record<string, Cases> = {
  attention_forward: attentionForward,
  attention_backward: attentionBackward,
};
