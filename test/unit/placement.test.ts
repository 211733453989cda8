// Parts of parameters: where their elements are in the whole, and how pieces of one division are read into another.
import { describe, expect, it } from 'vitest';
import { type BlockRange, copies, coverageProblem, wholeBlock } from '../../src/checkpoint/pieces.ts';
import { Parameter } from '../../src/nn/parameter.ts';
import { type AxisPlacement, matrixOf, Placement } from '../../src/nn/placement.ts';
import { PartRecipe, TensorRecipe } from '../../src/nn/recipe.ts';
import { manualSeed } from '../../src/tensor/random.ts';
import { numelOf, type Shape, Tensor } from '../../src/tensor/tensor.ts';

const iota = (n: number): Float32Array => Float32Array.from({ length: n }, (_, i) => i + 1);

const at = (shape: Shape, held: AxisPlacement, size: number, rank: number): Placement =>
  new Placement(shape, held, { axis: 'tensor', size, rank });
const shard = (dim: 0 | 1, parts: number, segments?: number[]): AxisPlacement => ({
  kind: 'shard',
  dim,
  parts,
  segments,
});

/** Element by element: what a rank's part of a whole with elements 1, 2, … holds. 0 is padding. */
function expectedPart({ fullShape, localShape, held, part }: Placement): Float32Array {
  const [height, width] = matrixOf(fullShape);
  const [rows, cols] = matrixOf(localShape);
  const segments = (held.kind === 'shard' ? held.segments : undefined) ?? [height];
  const parts = held.kind === 'shard' ? held.parts : 1;
  return Float32Array.from({ length: rows * cols }, (_, i) => {
    let [r, c] = [Math.floor(i / cols), i % cols];
    if (held.kind === 'shard' && held.dim === 1) c += part * cols;
    else {
      let first = 0;
      for (const length of segments) {
        const share = Math.ceil(length / parts);
        if (r < share) {
          r += first + part * share;
          break;
        }
        r -= share;
        first += length;
      }
    }
    return r < height ? r * width + c + 1 : 0;
  });
}

const divisions: [string, readonly number[], AxisPlacement, number][] = [
  ['rows', [8, 6], shard(0, 4), 4],
  ['columns', [5, 12], shard(1, 4), 4],
  ['a padded vocabulary', [10, 3], shard(0, 4), 4],
  ['a vocabulary with an empty part', [9, 2], shard(0, 4), 4],
  ['replicated rows', [6, 4], shard(0, 2), 4],
  ['a vector', [8], shard(0, 2), 2],
  ['query, key and value in one', [16, 3], shard(0, 2, [8, 4, 4]), 2],
  ['a fused vector on neighbours', [12], shard(0, 2, [8, 4]), 4],
  ['nothing divided', [3, 5], { kind: 'replicate' }, 4],
];

describe.each(divisions)('%s', (_, shape, held, size) => {
  const placements = Array.from({ length: size }, (_, rank) => at(shape, held, size, rank));
  const whole = Tensor.from(iota(numelOf(shape)), shape);

  it('reads any window of any part', () => {
    for (const placement of placements) {
      const wanted = expectedPart(placement);
      const recipe = new PartRecipe(new TensorRecipe(whole, 'user'), placement);
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
    for (const placement of placements.filter((one) => one.isFirst))
      for (const value of expectedPart(placement)) if (value > 0) seen.set(value, (seen.get(value) ?? 0) + 1);
    expect([...seen.values()].every((count) => count === 1)).toBe(true);
    expect(seen.size).toBe(numelOf(shape));
  });

  it('gives what pieces of any other division hold', () => {
    const stored = (others: readonly Placement[], cut: number): (BlockRange & { values: Float32Array })[] =>
      others
        .filter((placement) => placement.isFirst)
        .flatMap((placement) => {
          const values = expectedPart(placement);
          const end = Math.min(cut, values.length);
          const windows = [
            [0, end],
            [end, values.length - end],
          ] as const;
          return windows.flatMap(([start, length]) =>
            [...placement.pieces(start, length)].map((piece) => ({
              ...piece,
              values: values.subarray(start + piece.at, start + piece.at + piece.length),
            })),
          );
        });
    const sources: (readonly Placement[])[] = [
      [new Placement(shape)],
      placements,
      ...[2, 3]
        .filter((count) => shape.length === 2 && shape[1]! % count === 0)
        .map((count) => Array.from({ length: count }, (_, rank) => at(shape, shard(1, count), count, rank))),
      Array.from({ length: 2 }, (_, rank) => at(shape, shard(0, 2), 2, rank)),
    ];
    for (const source of sources) {
      for (const cut of [0, 1, 5, 7]) {
        const pieces = stored(source, cut);
        expect(coverageProblem(pieces, shape)).toBeUndefined();
        for (const placement of placements) {
          const wanted = expectedPart(placement);
          const real = placement.realNumel;
          for (const start of [0, 1, 4]) {
            const length = real - start;
            if (length <= 0) continue;
            const got = new Float32Array(length).fill(-1);
            for (const { block, start: first, at: to, length: count } of placement.pieces(start, length))
              for (const piece of pieces)
                for (const copy of copies({ block, start: first, length: count }, piece, shape))
                  for (let r = 0; r < copy.rows; r++)
                    for (let c = 0; c < copy.length; c++)
                      got[to + copy.to + r * copy.toStride + c] = piece.values[copy.from + r * copy.fromStride + c]!;
            expect([...got]).toEqual([...wanted.subarray(start, real)]);
          }
        }
      }
    }
  });
});

it('says which pieces are missing or twice', () => {
  const halves = [0, 1].map((rank) => [...at([4, 4], shard(1, 2), 2, rank).pieces(0, 8)][0]!.block);
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
  const create = (placement?: Placement): Parameter => {
    const parameter = new Parameter([10, 6], 'float32', { kind: 'normal', std: 1, paddingRow: 3 }, placement);
    parameter.name = 'model.embed_tokens.weight';
    return parameter;
  };
  const whole = create().dataSync() as Float32Array;
  expect([...whole.subarray(18, 24)]).toEqual([0, 0, 0, 0, 0, 0]);
  for (const dim of [0, 1] as const) {
    for (const size of [2, 3]) {
      for (let rank = 0; rank < size; rank++) {
        const placement = at([10, 6], shard(dim, size), size, rank);
        const part = create(placement);
        expect(part.shape).toEqual(placement.localShape);
        expect(part.fullShape).toEqual([10, 6]);
        const wanted = expectedPart(placement).map((index) => (index === 0 ? 0 : whole[index - 1]!));
        expect([...(part.dataSync() as Float32Array)]).toEqual([...wanted]);
      }
    }
  }
});

it('says over how many neighbours a gradient is summed, and who counts', () => {
  const of = (held: AxisPlacement): [number, boolean][] =>
    [0, 1, 2, 3].map((rank) => {
      const placement = at([8, 4], held, 4, rank);
      return [placement.gradientParts, placement.isFirst];
    });
  const once: [number, boolean][] = [4, 4, 4, 4].map((parts, rank) => [parts, rank === 0]);
  expect(of({ kind: 'partial' })).toEqual(once);
  expect(of({ kind: 'replicate' })).toEqual(once.map(([, first]) => [1, first]));
  expect(of(shard(0, 4))).toEqual(once.map(() => [1, true]));
  expect(of(shard(0, 2))).toEqual(once.map((_, rank) => [2, rank % 2 === 0]));
});

it('refuses segments that do not divide', () => {
  expect(() => at([12, 2], shard(0, 2, [8, 3]), 2, 0)).toThrow(
    'segments of 8 + 3 must add up to the 12 rows and divide by 2 each',
  );
  expect(() => at([12, 2], shard(0, 3), 4, 0)).toThrow('3 parts cannot be shared out to 4 ranks of axis tensor');
});
