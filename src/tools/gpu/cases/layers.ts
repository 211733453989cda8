// Embedding, GEMMs, norms, rotary embedding, the fused projection.
import type { FloatDType } from '../../../tensor/dtype.ts';
import { QuantizedLayout } from '../../../tensor/quantized.ts';
import type { Draw } from '../draw.ts';
import { floatDTypes, input, type OpCase, type Operand, type Output, output } from '../operand.ts';

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

const sums = ['alone', 'onto an earlier gradient', 'and an earlier gradient'] as const;

/** dx, and the gradient from other uses that is added: none, dx itself or another. */
function gradientAndEarlier(
  draw: Draw,
  dtype: FloatDType,
  numel: number,
  sum: (typeof sums)[number],
): [dx: Output, earlier: Operand] {
  if (sum === 'alone') return [output('dx', dtype, numel), undefined];
  const values = draw.normal(numel);
  if (sum === 'and an earlier gradient') return [output('dx', dtype, numel), input(dtype, values)];
  const dx = output('dx', dtype, numel, values);
  return [dx, dx];
}

function* linearForward(draw: Draw): Iterable<OpCase> {
  for (const dtype of floatDTypes)
    for (const [rows, inside, out] of gemmSizes(draw))
      for (const bias of [false, true]) {
        const [x, w] = [input(dtype, draw.normal(rows! * inside!)), input(dtype, draw.normal(out! * inside!))];
        const b = bias ? input(dtype, draw.normal(out!)) : undefined;
        const y = output('y', bias ? dtype : 'float32', rows! * out!);
        yield {
          label: `${rows}×${inside} to ${out}${bias ? ' with bias' : ''}`,
          operands: [y, x, w, b, undefined, rows, inside, out],
        };
        const residual = draw.normal(rows! * out!);
        const sum = output('y', dtype, rows! * out!, bias ? residual : undefined);
        yield {
          label: `${rows}×${inside} to ${out}, ${bias ? 'onto a residual, with bias' : 'and a residual'}`,
          operands: [sum, x, w, b, bias ? sum : input(dtype, residual), rows, inside, out],
        };
      }
}

function* linearBackwardInput(draw: Draw): Iterable<OpCase> {
  for (const dtype of floatDTypes)
    for (const sum of sums)
      for (const [rows, inside, out] of gemmSizes(draw)) {
        const [dx, earlier] = gradientAndEarlier(draw, dtype, rows! * inside!, sum);
        const [dy, w] = [input(dtype, draw.normal(rows! * out!)), input(dtype, draw.normal(out! * inside!))];
        yield {
          label: `${rows}×${out} to ${inside}, ${sum}`,
          operands: [dx, dy, w, earlier, rows, inside, out],
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
    for (const sum of sums)
      for (const [rows, dim] of rowShapes(draw)) {
        const accumulate = sum !== 'alone';
        const [dx, earlier] = gradientAndEarlier(draw, dtype, rows! * dim!, sum);
        const [dy, x] = [input(dtype, draw.normal(rows! * dim!)), input(dtype, draw.normal(rows! * dim!))];
        const w = input(dtype, draw.normal(dim!));
        const rstd = input('float32', draw.uniform(rows!, 0.5, 2));
        const dw = output('dw', accumulate ? 'float32' : dtype, dim!, accumulate ? draw.normal(dim!) : undefined);
        yield {
          label: `${rows}×${dim}, ${sum}`,
          operands: [dx, dw, dy, x, w, rstd, earlier, rows, dim, accumulate],
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

function* turnedParts(draw: Draw, merge: boolean): Iterable<OpCase> {
  for (const dtype of floatDTypes)
    for (const [rows, heads, kvHeads, dim, rotary] of draw.sizes(
      [
        [3, 1, 1, 2, 2],
        [7, 4, 2, 24, 6],
        [5, 2, 1, 64, 64],
      ],
      [
        [2048, 32, 8, 128, 128],
        [1001, 6, 2, 96, 24],
        [77, 3, 3, 33, 32],
      ],
    )) {
      const [wide, narrow] = [rows! * heads! * dim!, rows! * kvHeads! * dim!];
      const angles = draw.uniform((rows! * rotary!) / 2, -3, 3);
      const table = [angles.map(Math.cos), angles.map(Math.sin)].map((values) => input('float32', values));
      const parts = Object.entries({ q: wide, k: narrow, v: narrow }).map(([name, numel]) =>
        merge ? input(dtype, draw.normal(numel)) : output(name, dtype, numel),
      );
      const numel = wide + 2 * narrow;
      const packed = merge ? output('qkv', dtype, numel) : input(dtype, draw.normal(numel));
      yield {
        label: `${rows}×(${heads} + 2·${kvHeads})×${dim}, rotary ${rotary}`,
        operands: [...(merge ? [packed, ...parts] : [...parts, packed]), ...table, rows, heads, kvHeads, dim, rotary],
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

/** Widened weights: any codes; scales are floats whose bytes are drawn as such. */
function* dequantizeWeight(draw: Draw): Iterable<OpCase> {
  for (const dtype of floatDTypes)
    for (const [rows, columns, lines, piece] of draw.sizes(
      [
        [3, 9, 1, 64],
        [12, 48, 12, 16],
      ],
      [
        [4096, 1024, 1, 64],
        [777, 1376, 777, 32],
      ],
    ))
      for (const storage of ['nf4', 'nf4-double', 'int8'] as const) {
        const numel = rows! * columns!;
        const layout =
          storage === 'int8'
            ? QuantizedLayout.whole(storage, [rows!, columns!])
            : new QuantizedLayout(storage, numel, lines!, piece!);
        const bytes = Uint8Array.from(draw.integers(layout.bytes, 0, 256));
        const scalesAt = storage === 'nf4-double' ? layout.groupsAt : layout.scalesAt;
        const scales = draw.normal((layout.bytes - scalesAt) / 4).map(Math.abs);
        bytes.set(new Uint8Array(scales.buffer), scalesAt);
        if (storage === 'nf4-double') bytes.fill(0, layout.phasesAt, layout.offsetAt); // lines begin with a group
        const operands = [output('y', dtype, numel), input('uint8', bytes), ...layout.operands];
        yield { label: `${rows}×${columns} ${storage}, ${lines} lines`, operands, exact: true };
      }
}

export const layerCases: Record<string, Cases> = {
  embedding_forward: embeddingForward,
  embedding_backward: embeddingBackward,
  linear_forward: linearForward,
  linear_backward_input: linearBackwardInput,
  linear_backward_weight: linearBackwardWeight,
  dequantize_weight: dequantizeWeight,
  rms_norm_forward: rmsNormForward,
  rms_norm_backward: rmsNormBackward,
  layer_norm_forward: layerNormForward,
  layer_norm_backward: layerNormBackward,
  rope_table: ropeTable,
  rope,
  split_rope: (draw) => turnedParts(draw, false),
  merge_rope: (draw) => turnedParts(draw, true),
  split_qkv: (draw) => qkv(draw, false),
  merge_qkv: (draw) => qkv(draw, true),
};
