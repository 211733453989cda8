// Parts of parameters: where their elements are in the whole, and how pieces of one division are read into another.
import { describe, expect, it } from 'vitest';
import { type BlockRange, copies, coverageProblem, realNumel, wholeBlock } from '../../src/checkpoint/pieces.ts';
import { Parameter } from '../../src/nn/parameter.ts';
import { SplitRecipe, TensorRecipe } from '../../src/nn/recipe.ts';
import { type SplitDim, TensorSplit } from '../../src/nn/split.ts';
import { manualSeed } from '../../src/tensor/random.ts';
import { numelOf, Tensor } from '../../src/tensor/tensor.ts';

const iota = (n: number): Float32Array => Float32Array.from({ length: n }, (_, i) => i + 1);

/** Element by element: what a rank's part of a whole with elements 1, 2, … holds. 0 is padding. */
function expectedPart(split: TensorSplit): Float32Array {
  const { row, rows, col, cols } = split.block;
  const width = split.width;
  const height = numelOf(split.fullShape) / width;
  return Float32Array.from({ length: rows * cols }, (_, i) => {
    const [r, c] = [row + Math.floor(i / cols), col + (i % cols)];
    return r < height ? r * width + c + 1 : 0;
  });
}

const divisions: [string, readonly number[], SplitDim, number, number][] = [
  ['rows', [8, 6], 0, 4, 4],
  ['columns', [5, 12], 1, 4, 4],
  ['a padded vocabulary', [10, 3], 0, 4, 4],
  ['a vocabulary with an empty part', [9, 2], 0, 4, 4],
  ['replicated rows', [6, 4], 0, 4, 2],
  ['a vector', [8], 0, 2, 2],
  ['nothing divided', [3, 5], undefined, 4, 1],
];

describe.each(divisions)('%s', (_, shape, dim, size, parts) => {
  const splits = Array.from({ length: size }, (_, rank) => new TensorSplit(shape, dim, size, rank, parts));
  const whole = Tensor.from(iota(numelOf(shape)), shape);

  it('reads any window of any part', () => {
    for (const split of splits) {
      const wanted = expectedPart(split);
      const recipe = new SplitRecipe(new TensorRecipe(whole, 'user'), split);
      for (let start = 0; start < wanted.length; start++) {
        for (let length = 1; start + length <= wanted.length; length += 3) {
          const got = Tensor.full([length], -1);
          recipe.read(got, start);
          expect([...(got.dataSync() as Float32Array)]).toEqual([...wanted.subarray(start, start + length)]);
        }
      }
    }
  });

  it('holds every element of the whole once on the first ranks', () => {
    const seen = new Map<number, number>();
    for (const split of splits.filter((one) => one.isPrimary))
      for (const value of expectedPart(split)) if (value > 0) seen.set(value, (seen.get(value) ?? 0) + 1);
    expect([...seen.values()].every((count) => count === 1)).toBe(true);
    expect(seen.size).toBe(numelOf(shape));
  });

  it('gives what pieces of any other division hold', () => {
    const pieces = (others: readonly TensorSplit[], cut: number): (BlockRange & { values: Float32Array })[] =>
      others
        .filter((split) => split.isPrimary)
        .flatMap((split) => {
          const block = split.parts > 1 ? split.block : wholeBlock(shape);
          const real = realNumel(block, shape);
          const values = expectedPart(split);
          const at = Math.min(cut, real);
          return [
            { block, start: 0, length: at, values: values.subarray(0, at) },
            { block, start: at, length: real - at, values: values.subarray(at, real) },
          ].filter(({ length }) => length > 0);
        });
    const sources: (readonly TensorSplit[])[] = [
      [new TensorSplit(shape, undefined, 1, 0)],
      splits,
      ...[2, 3]
        .filter((count) => shape.length === 2 && shape[1]! % count === 0)
        .map((count) => Array.from({ length: count }, (_, rank) => new TensorSplit(shape, 1, count, rank))),
      Array.from({ length: 2 }, (_, rank) => new TensorSplit(shape, 0, 2, rank)),
    ];
    for (const source of sources) {
      for (const cut of [0, 1, 5, 7]) {
        const stored = pieces(source, cut);
        expect(coverageProblem(stored, shape)).toBeUndefined();
        for (const split of splits) {
          const wanted = expectedPart(split);
          const real = realNumel(split.block, shape);
          for (const start of [0, 1, 4]) {
            const length = real - start;
            if (length <= 0) continue;
            const got = new Float32Array(length).fill(-1);
            for (const piece of stored)
              for (const copy of copies({ block: split.block, start, length }, piece, shape))
                for (let r = 0; r < copy.rows; r++)
                  for (let c = 0; c < copy.length; c++)
                    got[copy.to + r * copy.toStride + c] = piece.values[copy.from + r * copy.fromStride + c]!;
            expect([...got]).toEqual([...wanted.subarray(start, real)]);
          }
        }
      }
    }
  });
});

it('says which pieces are missing or twice', () => {
  const halves = [0, 1].map((rank) => new TensorSplit([4, 4], 1, 2, rank).block);
  const range = (block: (typeof halves)[0], start: number, length: number): BlockRange => ({ block, start, length });
  const [left, right] = halves as [(typeof halves)[0], (typeof halves)[0]];
  expect(coverageProblem([range(left, 0, 8)], [4, 4])).toBe('it has 8 of 16 elements');
  expect(coverageProblem([range(left, 0, 8), range(right, 2, 6)], [4, 4])).toBe('elements 0 … are missing');
  expect(coverageProblem([range(left, 0, 8), range(left, 4, 4), range(right, 0, 8)], [4, 4])).toBe(
    'elements 4 … are there twice',
  );
  expect(coverageProblem([range(left, 0, 8), range(wholeBlock([4, 4]), 0, 16)], [4, 4])).toMatch(/are there twice/);
});

it('draws the same values in parts as whole', () => {
  manualSeed(7);
  const create = (split?: TensorSplit): Parameter => {
    const parameter = new Parameter([10, 6], 'float32', { kind: 'normal', std: 1, paddingRow: 3 }, split);
    parameter.name = 'model.embed_tokens.weight';
    return parameter;
  };
  const whole = create().dataSync() as Float32Array;
  expect([...whole.subarray(18, 24)]).toEqual([0, 0, 0, 0, 0, 0]);
  for (const dim of [0, 1] as const) {
    for (const size of [2, 3]) {
      for (let rank = 0; rank < size; rank++) {
        const split = new TensorSplit([10, 6], dim, size, rank);
        const part = create(split);
        expect(part.shape).toEqual(split.localShape);
        expect(part.fullShape).toEqual([10, 6]);
        const wanted = expectedPart(split).map((index) => (index === 0 ? 0 : whole[index - 1]!));
        expect([...(part.dataSync() as Float32Array)]).toEqual([...wanted]);
      }
    }
  }
});
