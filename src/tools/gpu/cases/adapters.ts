// What adapters add to layers: lengths of rows (DoRA).
import type { Draw } from '../draw.ts';
import { floatDTypes, input, type OpCase, type Operand, output } from '../operand.ts';

type Cases = (draw: Draw) => Iterable<OpCase>;

const doraSizes = (draw: Draw): number[][] =>
  draw.sizes(
    [
      [1, 1],
      [5, 33],
      [40, 64],
    ],
    [
      [1000, 1111],
      [257, 4096],
    ],
  );

function* rowSquares(draw: Draw): Iterable<OpCase> {
  for (const dtype of floatDTypes)
    for (const updated of [false, true])
      for (const [rows, cols] of doraSizes(draw)) {
        const [w, update] = [rows! * cols!, rows! * cols!].map((numel) => input(dtype, draw.normal(numel)));
        yield {
          label: `${rows}×${cols}${updated ? ' and an update' : ''}`,
          operands: [output('squares', 'float32', rows!), w, updated ? update : undefined, rows, cols],
        };
      }
}

/** Squared lengths of rows, and not of vectors that happen to be near zero. */
const lengths = (draw: Draw, numel: number): Operand =>
  input(
    'float32',
    draw.normal(numel).map((x) => 1 + x * x),
  );

function* doraForward(draw: Draw): Iterable<OpCase> {
  for (const dtype of floatDTypes)
    for (const inPlace of [false, true])
      for (const [rows, dim] of doraSizes(draw)) {
        const x = draw.normal(rows! * dim!);
        const y = output('y', dtype, rows! * dim!, inPlace ? x : undefined);
        const m = input(inPlace ? 'float32' : dtype, draw.normal(dim!));
        yield {
          label: `${rows}×${dim}${inPlace ? ' onto itself' : ''}`,
          operands: [y, inPlace ? y : input(dtype, x), m, lengths(draw, dim!), rows, dim],
        };
      }
}

function* doraBackward(draw: Draw): Iterable<OpCase> {
  for (const dtype of floatDTypes)
    for (const accumulate of [false, true])
      for (const [rows, dim] of doraSizes(draw)) {
        const dm = output('dm', accumulate ? 'float32' : dtype, dim!, accumulate ? draw.normal(dim!) : undefined);
        const [dy, x] = [rows! * dim!, rows! * dim!].map((numel) => input(dtype, draw.normal(numel)));
        yield {
          label: `${rows}×${dim}, accumulate ${accumulate}`,
          operands: [dm, dy, x, lengths(draw, dim!), rows, dim, accumulate],
        };
      }
}

export const adapterCases: Record<string, Cases> = {
  row_squares: rowSquares,
  dora_forward: doraForward,
  dora_backward: doraBackward,
};
