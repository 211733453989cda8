// Moves, casts, sums, random numbers, activations: ops over flat buffers.
import type { DType } from '../../../tensor/dtype.ts';
import type { Draw } from '../draw.ts';
import { floatDTypes, input, type OpCase, output } from '../operand.ts';

type Cases = (draw: Draw) => Iterable<OpCase>;

const lengths = (draw: Draw): number[] => draw.sizes([1, 7, 1037], [4096, 65_537, 3_000_001]);

function* fill(draw: Draw): Iterable<OpCase> {
  for (const dtype of [...floatDTypes, 'int32', 'int64', 'uint8'] as DType[])
    for (const n of lengths(draw))
      yield { label: `${n} of ${dtype}`, operands: [output('x', dtype, n), 3], exact: true };
}

function* copy(draw: Draw): Iterable<OpCase> {
  for (const from of floatDTypes)
    for (const to of floatDTypes)
      for (const n of lengths(draw))
        yield {
          label: `${n} of ${from} to ${to}`,
          operands: [output('dst', to, n), input(from, draw.normal(n))],
          exact: true,
        };
  yield { label: 'int64', operands: [output('dst', 'int64', 77), input('int64', draw.int64(77, 0, 1e6))], exact: true };
}

function* copyRows(draw: Draw): Iterable<OpCase> {
  for (const [from, to] of [
    ['float32', 'float32'],
    ['float32', 'bfloat16'],
    ['bfloat16', 'float16'],
    ['bfloat16', 'bfloat16'],
  ] as const)
    for (const [rows, cols, pad] of draw.sizes(
      [
        [1, 1, 0],
        [7, 33, 3],
        [12, 64, 8],
      ],
      [
        [1000, 1111, 5],
        [64, 40_000, 0],
      ],
    )) {
      const [dstPitch, srcPitch] = [cols! + pad!, cols! + 2 * pad!];
      const dst = output('dst', to, 2 + rows! * dstPitch, draw.normal(2 + rows! * dstPitch));
      const src = input(from, draw.normal(5 + rows! * srcPitch));
      yield {
        label: `${rows}×${cols}, ${from} to ${to}`,
        operands: [dst, src, rows, cols, 2, dstPitch, 5, srcPitch],
        exact: true,
      };
    }
}

function* add(draw: Draw): Iterable<OpCase> {
  for (const dtype of floatDTypes)
    for (const n of lengths(draw)) {
      const y = output('y', dtype, n, draw.normal(n));
      yield {
        label: `${n}`,
        operands: [output('y', dtype, n), input(dtype, draw.normal(n)), input(dtype, draw.normal(n))],
      };
      yield { label: `${n} onto itself`, operands: [y, y, input(dtype, draw.normal(n))] };
    }
  yield {
    label: 'of two dtypes',
    operands: [output('y', 'float32', 501), input('bfloat16', draw.normal(501)), input('float32', draw.normal(501))],
  };
}

function* scale(draw: Draw): Iterable<OpCase> {
  for (const dtype of floatDTypes)
    for (const n of lengths(draw)) {
      const x = input(dtype, draw.normal(n));
      const by = input('float32', Float32Array.of(0.75));
      yield { label: `${n}`, operands: [output('y', dtype, n), x, undefined, 2.5, false] };
      yield {
        label: `${n}, accumulated, by the device`,
        operands: [output('y', 'float32', n, draw.normal(n)), x, by, -1.5, true],
      };
    }
}

function* sumSquares(draw: Draw): Iterable<OpCase> {
  for (const dtype of floatDTypes)
    for (const n of lengths(draw)) {
      yield { label: `${n}`, operands: [output('out', 'float32', 1), input(dtype, draw.normal(n)), false] };
      yield {
        label: `${n}, accumulated`,
        operands: [output('out', 'float32', 1, Float32Array.of(3)), input(dtype, draw.normal(n)), true],
      };
    }
}

function* clipFactor(draw: Draw): Iterable<OpCase> {
  for (const most of [0.5, 1e6]) {
    const sum = input('float32', draw.uniform(1, 1, 100));
    yield { label: `to ${most}`, operands: [output('norm', 'float32', 1), output('factor', 'float32', 1), sum, most] };
  }
}

function* randomFill(draw: Draw): Iterable<OpCase> {
  for (const dtype of floatDTypes)
    for (const normal of [true, false])
      for (const [n, offset] of draw.sizes(
        [
          [1, 0],
          [1037, 3],
        ],
        [
          [1_000_003, 1],
          [70_000, 2 ** 33 + 7],
        ],
      )) {
        const seed = BigInt(draw.integers(1, 0, 2 ** 30)[0]!);
        yield {
          label: `${n} from ${offset}, ${normal ? 'normal' : 'uniform'}`,
          operands: [output('x', dtype, n!), seed, draw.key, offset, normal, normal ? 0.1 : -1, 2],
          exact: true,
        };
      }
}

function* dropout(draw: Draw): Iterable<OpCase> {
  for (const dtype of floatDTypes)
    for (const [rows, columns, first] of draw.sizes(
      [
        [7, 33, 0],
        [3, 64, 66],
      ],
      [
        [1000, 1111, 5],
        [64, 40_000, 0],
      ],
    )) {
      const n = rows! * columns!;
      yield {
        label: `${rows}×${columns} from column ${first}`,
        operands: [
          output('y', dtype, n),
          input(dtype, draw.normal(n)),
          input('int64', draw.int64(rows!, 0, 2 ** 40)),
          ...[columns, first, 0.3],
          BigInt(draw.integers(1, 0, 2 ** 30)[0]!),
          draw.key,
        ],
        exact: true,
      };
    }
}

function* forward(draw: Draw, name: 'swiglu' | 'gelu'): Iterable<OpCase> {
  for (const dtype of floatDTypes)
    for (const n of lengths(draw)) {
      const x = input(dtype, draw.normal(n, n === 1 ? 1 : 3)); // far below 0 GELU is rounding alone
      if (name === 'swiglu')
        yield { label: `${n}`, operands: [output('y', dtype, n), x, input(dtype, draw.normal(n))] };
      else
        for (const tanh of [false, true])
          yield { label: `${n}, tanh ${tanh}`, operands: [output('y', dtype, n), x, tanh] };
    }
}

function* backward(draw: Draw, name: 'swiglu' | 'gelu'): Iterable<OpCase> {
  for (const dtype of floatDTypes)
    for (const n of lengths(draw)) {
      const [dy, x, up] = [draw.normal(n), draw.normal(n, 3), draw.normal(n)].map((values) => input(dtype, values));
      if (name === 'swiglu')
        yield { label: `${n}`, operands: [output('d_gate', dtype, n), output('d_up', dtype, n), dy, x, up] };
      else
        for (const tanh of [false, true])
          yield { label: `${n}, tanh ${tanh}`, operands: [output('dx', dtype, n), dy, x, tanh] };
    }
}

function* packedSwiglu(draw: Draw, backward: boolean): Iterable<OpCase> {
  for (const dtype of floatDTypes)
    for (const [rows, inner] of draw.sizes(
      [
        [1, 1],
        [9, 37],
        [5, 64],
      ],
      [
        [1000, 8192],
        [333, 4095],
        [3, 20_001],
      ],
    )) {
      const numel = rows! * inner!;
      const packed = input(dtype, draw.normal(2 * numel, 3));
      const operands = backward
        ? [output('d_gate_up', dtype, 2 * numel), input(dtype, draw.normal(numel)), packed]
        : [output('y', dtype, numel), packed];
      yield { label: `${rows}×${inner}`, operands: [...operands, rows, inner] };
    }
}

export const elementwiseCases: Record<string, Cases> = {
  fill,
  copy,
  copy_rows: copyRows,
  add,
  scale,
  sum_squares: sumSquares,
  clip_factor: clipFactor,
  random_fill: randomFill,
  dropout,
  swiglu_forward: (draw) => forward(draw, 'swiglu'),
  swiglu_backward: (draw) => backward(draw, 'swiglu'),
  packed_swiglu_forward: (draw) => packedSwiglu(draw, false),
  packed_swiglu_backward: (draw) => packedSwiglu(draw, true),
  gelu_forward: (draw) => forward(draw, 'gelu'),
  gelu_backward: (draw) => backward(draw, 'gelu'),
};
