// Embedding, GEMMs, norms, rotary embedding, the fused projection, attention.
import { reference } from '../check.ts';
import type { Draw } from '../draw.ts';
import { floatDTypes, input, type OpCase, type Operand, output } from '../operand.ts';

type Cases = (draw: Draw) => Iterable<OpCase>;

function* embeddingForward(draw: Draw): Iterable<OpCase> {
  for (const dtype of floatDTypes)
    for (const [rows, vocab, dim, first] of draw.sizes(
      [
        [5, 9, 3, 0],
        [13, 50, 64, 7],
      ],
      [
        [4096, 32_000, 512, 0],
        [1000, 777, 1023, 500],
      ],
    )) {
      const ids = input('int64', draw.int64(rows!, 0, vocab! + 2 * first!)); // some of them are another part's
      const table = input(dtype, draw.normal(vocab! * dim!));
      yield {
        label: `${rows} of ${vocab}×${dim}`,
        operands: [output('out', dtype, rows! * dim!), ids, table, rows, vocab, dim, first],
        exact: true,
      };
    }
}

function* embeddingBackward(draw: Draw): Iterable<OpCase> {
  for (const dtype of floatDTypes)
    for (const accumulate of [false, true])
      for (const [rows, vocab, dim, first] of draw.sizes(
        [
          [11, 9, 3, 0],
          [29, 20, 64, 7],
        ],
        [
          [4096, 8000, 512, 0],
          [3000, 77, 1023, 30],
        ],
      )) {
        const table = output('d_table', 'float32', vocab! * dim!, accumulate ? draw.normal(vocab! * dim!) : undefined);
        const ids = input('int64', draw.int64(rows!, 0, vocab! + 2 * first!));
        yield {
          label: `${rows} of ${vocab}×${dim}, accumulate ${accumulate}`,
          operands: [table, ids, input(dtype, draw.normal(rows! * dim!)), rows, vocab, dim, first, accumulate],
        };
      }
}

const gemmSizes = (draw: Draw): number[][] =>
  draw.sizes(
    [
      [1, 1, 1],
      [5, 33, 47],
      [40, 64, 24],
    ],
    [
      [257, 1000, 513],
      [512, 2048, 2048],
      [1, 4096, 1024],
      [1023, 776, 3],
    ],
  );

function* linearForward(draw: Draw): Iterable<OpCase> {
  for (const dtype of floatDTypes)
    for (const [rows, inside, out] of gemmSizes(draw))
      for (const bias of [false, true]) {
        const [x, w] = [input(dtype, draw.normal(rows! * inside!)), input(dtype, draw.normal(out! * inside!))];
        const b = bias ? input(dtype, draw.normal(out!)) : undefined;
        const y = output('y', bias ? dtype : 'float32', rows! * out!);
        yield {
          label: `${rows}×${inside} to ${out}${bias ? ' with bias' : ''}`,
          operands: [y, x, w, b, rows, inside, out],
        };
      }
}

function* linearBackwardInput(draw: Draw): Iterable<OpCase> {
  for (const dtype of floatDTypes)
    for (const accumulate of [false, true])
      for (const [rows, inside, out] of gemmSizes(draw)) {
        const dx = output('dx', dtype, rows! * inside!, accumulate ? draw.normal(rows! * inside!) : undefined);
        const [dy, w] = [input(dtype, draw.normal(rows! * out!)), input(dtype, draw.normal(out! * inside!))];
        yield {
          label: `${rows}×${out} to ${inside}, accumulate ${accumulate}`,
          operands: [dx, dy, w, rows, inside, out, accumulate],
        };
      }
}

function* linearBackwardWeight(draw: Draw): Iterable<OpCase> {
  for (const dtype of floatDTypes)
    for (const accumulate of [false, true])
      for (const [rows, inside, out] of gemmSizes(draw)) {
        const to = accumulate ? 'float32' : dtype;
        const dw = output('dw', to, out! * inside!, accumulate ? draw.normal(out! * inside!) : undefined);
        const db = output('db', to, out!, accumulate ? draw.normal(out!) : undefined);
        const [dy, x] = [input(dtype, draw.normal(rows! * out!)), input(dtype, draw.normal(rows! * inside!))];
        yield {
          label: `${out}×${inside} over ${rows} rows, accumulate ${accumulate}`,
          operands: [dw, db, dy, x, rows, inside, out, accumulate],
        };
      }
}

const rowShapes = (draw: Draw): number[][] =>
  draw.sizes(
    [
      [1, 1],
      [5, 70],
      [9, 512],
    ],
    [
      [1000, 2048],
      [333, 4095],
      [64, 8192],
      [4099, 768],
      [3, 20_001],
    ],
  );

function* rmsNormForward(draw: Draw): Iterable<OpCase> {
  for (const dtype of floatDTypes)
    for (const [rows, dim] of rowShapes(draw)) {
      const [x, w] = [input(dtype, draw.normal(rows! * dim!)), input(dtype, draw.normal(dim!))];
      yield {
        label: `${rows}×${dim}`,
        operands: [output('y', dtype, rows! * dim!), output('rstd', 'float32', rows!), x, w, rows, dim, 1e-5],
      };
    }
}

function* rmsNormBackward(draw: Draw): Iterable<OpCase> {
  for (const dtype of floatDTypes)
    for (const accumulate of [false, true])
      for (const [rows, dim] of rowShapes(draw)) {
        const [dy, x] = [input(dtype, draw.normal(rows! * dim!)), input(dtype, draw.normal(rows! * dim!))];
        const w = input(dtype, draw.normal(dim!));
        const rstd = input('float32', draw.uniform(rows!, 0.5, 2));
        const dw = output('dw', accumulate ? 'float32' : dtype, dim!, accumulate ? draw.normal(dim!) : undefined);
        yield {
          label: `${rows}×${dim}, accumulate ${accumulate}`,
          operands: [output('dx', dtype, rows! * dim!), dw, dy, x, w, rstd, rows, dim, accumulate],
        };
      }
}

function* layerNormForward(draw: Draw): Iterable<OpCase> {
  for (const dtype of floatDTypes)
    for (const [rows, dim] of rowShapes(draw)) {
      if (dim === 1) continue; // its variance is rounding alone
      const [x, w, b] = [draw.normal(rows! * dim!), draw.normal(dim!), draw.normal(dim!)].map((values) =>
        input(dtype, values),
      );
      const kept = [output('mean', 'float32', rows!), output('rstd', 'float32', rows!)];
      yield {
        label: `${rows}×${dim}`,
        operands: [output('y', dtype, rows! * dim!), ...kept, x, w, b, rows, dim, 1e-5],
      };
    }
}

function* layerNormBackward(draw: Draw): Iterable<OpCase> {
  for (const dtype of floatDTypes)
    for (const accumulate of [false, true])
      for (const [rows, dim] of rowShapes(draw)) {
        if (dim === 1) continue;
        const [dy, x, w] = [draw.normal(rows! * dim!), draw.normal(rows! * dim!), draw.normal(dim!)].map((values) =>
          input(dtype, values),
        );
        const [mean, rstd] = [input('float32', draw.normal(rows!, 0.1)), input('float32', draw.uniform(rows!, 0.5, 2))];
        const [dw, db] = ['dw', 'db'].map((name) =>
          output(name, accumulate ? 'float32' : dtype, dim!, accumulate ? draw.normal(dim!) : undefined),
        );
        yield {
          label: `${rows}×${dim}, accumulate ${accumulate}`,
          operands: [
            output('dx', dtype, rows! * dim!),
            dw,
            db,
            dy,
            x,
            w,
            mean,
            rstd,
            rows,
            dim,
            accumulate,
            accumulate,
          ],
        };
      }
}

function* ropeTable(draw: Draw): Iterable<OpCase> {
  for (const [rows, half, far] of draw.sizes(
    [
      [1, 1, 10],
      [9, 24, 3000],
    ],
    [[4096, 64, 131_072]],
  )) {
    const [cos, sin] = ['cos', 'sin'].map((name) => output(name, 'float32', rows! * half!));
    const frequencies = Float32Array.from({ length: half! }, (_, i) => 10_000 ** (-i / half!));
    yield {
      label: `${rows}×${half}`,
      operands: [cos, sin, input('int64', draw.int64(rows!, 0, far!)), input('float32', frequencies), rows, half, 1.25],
    };
  }
}

function* rope(draw: Draw): Iterable<OpCase> {
  for (const dtype of floatDTypes)
    for (const [rows, heads, dim, rotary] of draw.sizes(
      [
        [3, 1, 2, 2],
        [7, 3, 24, 6],
        [5, 2, 64, 64],
      ],
      [
        [2048, 32, 128, 128],
        [1001, 7, 96, 24],
      ],
    ))
      for (const inverse of [false, true]) {
        const angles = draw.uniform((rows! * rotary!) / 2, -3, 3);
        const [cos, sin] = [angles.map(Math.cos), angles.map(Math.sin)].map((values) => input('float32', values));
        const x = draw.normal(rows! * heads! * dim!);
        const inPlace = output('x', dtype, x.length, x);
        const operands: Operand[] = inverse ? [inPlace, inPlace] : [output('y', dtype, x.length), input(dtype, x)];
        yield {
          label: `${rows}×${heads}×${dim}, rotary ${rotary}${inverse ? ', inverse, in place' : ''}`,
          operands: [...operands, cos, sin, rows, heads, dim, rotary, inverse],
        };
      }
}

function* qkv(draw: Draw, merge: boolean): Iterable<OpCase> {
  for (const dtype of floatDTypes)
    for (const [rows, heads, dim] of draw.sizes(
      [
        [1, 1, 1],
        [5, 3, 24],
      ],
      [
        [2048, 16, 96],
        [333, 5, 77],
      ],
    )) {
      const numel = rows! * heads! * dim!;
      const parts = ['q', 'k', 'v'].map((name) =>
        merge ? input(dtype, draw.normal(numel)) : output(name, dtype, numel),
      );
      const fused = merge ? output('qkv', dtype, 3 * numel) : input(dtype, draw.normal(3 * numel));
      const operands = merge ? [fused, ...parts] : [...parts, fused];
      yield { label: `${rows}×${heads}×${dim}`, operands: [...operands, rows, heads, dim], exact: true };
    }
}

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

export const layerCases: Record<string, Cases> = {
  embedding_forward: embeddingForward,
  embedding_backward: embeddingBackward,
  linear_forward: linearForward,
  linear_backward_input: linearBackwardInput,
  linear_backward_weight: linearBackwardWeight,
  rms_norm_forward: rmsNormForward,
  rms_norm_backward: rmsNormBackward,
  layer_norm_forward: layerNormForward,
  layer_norm_backward: layerNormBackward,
  rope_table: ropeTable,
  rope,
  split_qkv: (draw) => qkv(draw, false),
  merge_qkv: (draw) => qkv(draw, true),
  attention_forward: attentionForward,
  attention_backward: attentionBackward,
};
