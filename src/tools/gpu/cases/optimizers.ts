// Updates of optimizers over flat buffers.
import { dynamicMap } from '../../../optim/dynamic_map.ts';
import type { Draw } from '../draw.ts';
import { input, type OpCase, output } from '../operand.ts';

type Cases = (draw: Draw) => Iterable<OpCase>;

const lengths = (draw: Draw): number[] => draw.sizes([1, 7, 1037], [4096, 65_537, 3_000_001]);

/** [parameter, gradient, copy] */
const dtypes = [
  ['float32', 'float32', undefined],
  ['float32', 'bfloat16', 'bfloat16'],
  ['bfloat16', 'bfloat16', undefined],
] as const;

function* adamw(draw: Draw): Iterable<OpCase> {
  for (const [param, grad, copy] of dtypes)
    for (const n of lengths(draw))
      for (const segmented of [false, true]) {
        const segments = segmented
          ? input('int64', BigInt64Array.of(0n, BigInt(n >> 2), BigInt(n >> 1), BigInt(n)))
          : undefined;
        yield {
          label: `${n} of ${param} with ${grad} gradients${segmented ? ', in segments' : ''}`,
          operands: [
            output('param', param, n, draw.normal(n)),
            input(grad, draw.normal(n, 0.1)),
            output('exp_avg', 'float32', n, draw.normal(n, 0.1)),
            output('exp_avg_sq', 'float32', n, draw.uniform(n, 0.01, 0.02)),
            segments,
            segmented ? input('float32', Float32Array.of(0.5)) : undefined,
            copy && output('copy', copy, n),
            0.01,
            0.9,
            0.999,
            1e-8,
            0.1,
            3,
          ],
        };
      }
}

function* sgd(draw: Draw): Iterable<OpCase> {
  for (const [param, grad, copy] of dtypes)
    for (const n of lengths(draw))
      for (const momentum of [0, 0.9])
        yield {
          label: `${n} of ${param} with ${grad} gradients${momentum ? ' and momentum, in segments' : ''}`,
          operands: [
            output('param', param, n, draw.normal(n)),
            input(grad, draw.normal(n, 0.1)),
            momentum ? output('momentum_buffer', 'float32', n, draw.normal(n, 0.1)) : undefined,
            momentum ? input('int64', BigInt64Array.of(0n, BigInt(n >> 2), BigInt(n >> 1), BigInt(n))) : undefined,
            momentum ? input('float32', Float32Array.of(0.5)) : undefined,
            copy && output('copy', copy, n),
            0.01,
            momentum,
            0,
            0.1,
            momentum > 0,
            3,
          ],
        };
}

/** Runs of at most 256 elements, the third of them cut. */
function runsOf(n: number): number[] {
  const bounds = [0, Math.min(n, 256)];
  for (let at = bounds[1]!; at < n; at = bounds.at(-1)!)
    bounds.push(at, Math.min(n, at + (bounds.length === 4 ? 100 : 256)));
  return bounds;
}

/** What both ops of 8-bit moments have in common. */
function moments8bit(draw: Draw, n: number, runs: number, isRead: boolean): OpCase['operands'] {
  const codes = (name: string) => {
    const values = Uint8Array.from(draw.integers(n, 0, 256), Number);
    return isRead ? input('uint8', values) : output(name, 'uint8', n, values);
  };
  const scales = (name: string) => {
    const values = draw.uniform(runs, 0.01, 0.02);
    return isRead ? input('float32', values) : output(name, 'float32', runs, values);
  };
  return [codes('exp_avg'), codes('exp_avg_sq'), scales('exp_avg_scale'), scales('exp_avg_sq_scale')];
}

const maps = (): OpCase['operands'] => [true, false].map((signed) => input('float32', dynamicMap(signed)));

function* adamw8bitPeaks(draw: Draw): Iterable<OpCase> {
  for (const [, grad] of dtypes)
    for (const n of lengths(draw)) {
      const bounds = runsOf(n);
      const runs = bounds.length / 2;
      const cut = runs > 2 ? [2, 1] : [0, 0];
      yield {
        label: `${n} of ${grad}`,
        operands: [
          output('peaks', 'float32', 4, draw.uniform(4, 0, 1)),
          input('int64', BigInt64Array.from(cut, BigInt)),
          input(grad, draw.normal(n, 0.1)),
          ...moments8bit(draw, n, runs, true),
          input('int64', BigInt64Array.from(bounds, BigInt)),
          ...maps(),
          input('float32', Float32Array.of(0.5)),
          ...[0.9, 0.999],
        ],
        exact: true,
      };
    }
}

function* adamw8bit(draw: Draw): Iterable<OpCase> {
  for (const [param, grad, copy] of dtypes)
    for (const n of lengths(draw))
      for (const isCut of [false, true]) {
        const bounds = runsOf(n);
        const runs = bounds.length / 2;
        const cut = runs > 2 ? [2, 1] : [0, 0];
        yield {
          label: `${n} of ${param} with ${grad} gradients${isCut ? ', a block cut' : ''}`,
          operands: [
            output('param', param, n, draw.normal(n)),
            input(grad, draw.normal(n, 0.1)),
            ...moments8bit(draw, n, runs, false),
            input('int64', BigInt64Array.from(bounds, BigInt)),
            ...maps(),
            isCut ? input('int64', BigInt64Array.from(cut, BigInt)) : undefined,
            isCut ? input('float32', draw.uniform(4, 1, 2)) : undefined,
            input('float32', Float32Array.of(0.5)),
            copy && output('copy', copy, n),
            ...[0.01, 0.9, 0.999, 1e-8, 0.1, 3],
          ],
          exact: true,
        };
      }
}

/** [rows, columns] of a matrix, of which the second slice of a division in two begins within a row. */
const matrices = (draw: Draw): number[][] =>
  draw.sizes(
    [
      [3, 5],
      [40, 33],
    ],
    [
      [1000, 1111],
      [64, 40_000],
    ],
  );

/** first, width, row, column, and how many elements. */
function placeOf(rows: number, columns: number): { place: [number, number, number, number]; n: number } {
  const first = (rows * columns) >> 1;
  return { place: [first, columns, 0, 0], n: rows * columns - first };
}

function* adafactorSums(draw: Draw): Iterable<OpCase> {
  for (const [, grad] of dtypes)
    for (const [rows, columns] of matrices(draw) as [number, number][]) {
      const { place, n } = placeOf(rows, columns);
      yield {
        label: `${rows}×${columns} of ${grad}`,
        operands: [
          output('row_sums', 'float32', rows, draw.uniform(rows, 0, 1)),
          output('column_sums', 'float32', columns, draw.uniform(columns, 0, 1)),
          input(grad, draw.normal(n)),
          input('float32', Float32Array.of(0.5)),
          ...place,
        ],
      };
    }
}

function* adafactorFactors(draw: Draw): Iterable<OpCase> {
  for (const [rows, columns] of matrices(draw) as [number, number][])
    yield {
      label: `${rows}×${columns}`,
      operands: [
        output('rows', 'float32', rows, draw.uniform(rows, 0, 1)),
        output('columns', 'float32', columns, draw.uniform(columns, 0, 1)),
        output('mean', 'float32', 1),
        input('float32', draw.uniform(rows, 0, 100)),
        input('float32', draw.uniform(columns, 0, 100)),
        0.3,
      ],
    };
}

function* adafactorNorm(draw: Draw): Iterable<OpCase> {
  for (const [, grad] of dtypes) {
    for (const [rows, columns] of matrices(draw) as [number, number][]) {
      const { place, n } = placeOf(rows, columns);
      yield {
        label: `${rows}×${columns} of ${grad}`,
        operands: [
          output('out', 'float32', 1, Float32Array.of(1)),
          input(grad, draw.normal(n)),
          input('float32', Float32Array.of(0.5)),
          undefined,
          ...factors(draw, rows, columns),
          ...place,
          1e-7,
          0.3,
        ],
      };
    }
    for (const n of lengths(draw))
      yield {
        label: `${n} of ${grad}`,
        operands: [
          output('out', 'float32', 1, Float32Array.of(1)),
          input(grad, draw.normal(n)),
          undefined,
          output('variance', 'float32', n, draw.uniform(n, 0.5, 1)),
          ...[undefined, undefined, undefined],
          ...[0, n, 0, 0],
          1e-7,
          0.3,
        ],
      };
  }
}

function factors(draw: Draw, rows: number, columns: number): OpCase['operands'] {
  return [rows, columns, 1].map((n) => input('float32', draw.uniform(n, 0.5, 1)));
}

function* adafactorStep(draw: Draw): Iterable<OpCase> {
  for (const [param, grad, copy] of dtypes)
    for (const [rows, columns] of matrices(draw) as [number, number][])
      for (const isMatrix of [true, false]) {
        const { place, n } = placeOf(rows, columns);
        yield {
          label: `${rows}×${columns} of ${param} with ${grad} gradients${isMatrix ? '' : ', as a vector'}`,
          operands: [
            output('param', param, n, draw.normal(n)),
            input(grad, draw.normal(n)),
            input('float32', Float32Array.of(0.5)),
            copy && output('copy', copy, n),
            isMatrix ? undefined : input('float32', draw.uniform(n, 0.5, 1)),
            ...(isMatrix ? factors(draw, rows, columns) : [undefined, undefined, undefined]),
            ...[1, 2].map(() => input('float32', draw.uniform(1, n, 2 * n))),
            ...place,
            rows * columns,
            ...[0.01, 0.01, 1e-7, 1e-3, 1, 0.1],
          ],
        };
      }
}

export const optimizerCases: Record<string, Cases> = {
  adamw,
  sgd,
  adamw8bit_peaks: adamw8bitPeaks,
  adamw8bit,
  adafactor_sums: adafactorSums,
  adafactor_factors: adafactorFactors,
  adafactor_norm: adafactorNorm,
  adafactor_step: adafactorStep,
};
