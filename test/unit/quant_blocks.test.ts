// Blocks of 8-bit optimizer state: the map, and that every division of a parameter has every block, whole or in runs.
import { describe, expect, it } from 'vitest';
import { coverageProblem } from '../../src/checkpoint/pieces.ts';
import { type AxisPlacement, matrixOf, Placement } from '../../src/nn/placement.ts';
import type { Share } from '../../src/nn/trainable_slice.ts';
import { dynamicMap } from '../../src/optim/dynamic_map.ts';
import { blockRuns, cutBlocks, numBlocks, quantBlock, scalePieces, scaleShape } from '../../src/optim/quant_blocks.ts';
import { numelOf, type Shape } from '../../src/tensor/tensor.ts';

describe('the dynamic map', () => {
  it('has the values of bitsandbytes', () => {
    const signed = dynamicMap(true);
    const unsigned = dynamicMap(false);
    expect([signed.length, unsigned.length]).toEqual([256, 256]);
    const near = (map: Float32Array, at: number, value: number): void => expect(map[at]! / value).toBeCloseTo(1, 6);
    for (const [at, value] of [
      [0, -0.99296875],
      [1, -0.97890625],
      [128, 5.5e-7],
      [129, 3.25e-6],
      [254, 0.99296875],
      [255, 1],
    ] as const)
      near(signed, at, value);
    for (const [at, value] of [
      [1, 3.25e-7],
      [2, 7.75e-7],
      [3, 2.125e-6],
      [254, 0.996484375],
      [255, 1],
    ] as const)
      near(unsigned, at, value);
    expect([signed[127], unsigned[0]]).toEqual([0, 0]);
    for (const map of [signed, unsigned]) expect([...map]).toEqual([...map].sort((a, b) => a - b));
    for (let i = 0; i < 127; i++) expect(signed[i]).toBe(-signed[254 - i]!);
  });
});

const cases: [string, Shape, AxisPlacement, tp: number][] = [
  ['whole rows', [40, 64], { kind: 'replicate' }, 1],
  ['a vector', [5000], { kind: 'replicate' }, 2],
  ['rows', [30, 100], { kind: 'shard', dim: 0, parts: 2 }, 2],
  ['rows with padding', [29, 100], { kind: 'shard', dim: 0, parts: 2 }, 2],
  ['fused rows', [48, 70], { kind: 'shard', dim: 0, parts: 2, segments: [16, 20, 12] }, 2],
  ['columns of whole blocks', [12, 1024], { kind: 'shard', dim: 1, parts: 2 }, 2],
  ['columns that cut blocks', [60, 96], { kind: 'shard', dim: 1, parts: 2 }, 2],
  ['columns that cut wide blocks', [7, 512], { kind: 'shard', dim: 1, parts: 4 }, 4],
  ['columns held twice', [12, 1024], { kind: 'shard', dim: 1, parts: 2 }, 4],
];

describe.each(cases)('%s', (_, shape, held, tp) => {
  it.each([1, 2, 3, 7])('in %i shards', (shards) => {
    const placements = Array.from(
      { length: tp },
      (_, rank) => new Placement(shape, held, { axis: 'tensor', size: tp, rank }),
    );
    const local = numelOf(placements[0]!.localShape);
    const shard = Math.ceil(Math.ceil(local / shards) / 16) * 16;
    const shares = placements.flatMap((placement) =>
      Array.from({ length: shards }, (_, i) => ({
        placement,
        start: Math.min(local, i * shard),
        length: Math.max(0, Math.min(local, (i + 1) * shard) - i * shard),
      })),
    ) as Share[];
    const cut = cutBlocks(shape, shares);
    const isCut = (block: number): boolean => cut.some(([from, to]) => block >= from && block < to);
    const numel = numelOf(shape);
    const count = new Map<number, number>();
    const firsts: number[] = [];
    const saved: ReturnType<typeof scalePieces> = [];
    const wrong: string[] = [];
    for (const { placement, start, length } of shares) {
      const runs = blockRuns(placement, start, length);
      const wholeIndex = new Map<number, number>(); // in the range → in the whole
      for (const { at, from, rows, length: n, stride } of placement.ranges(start, length))
        for (let row = 0; row < rows; row++)
          for (let i = 0; i < n; i++) wholeIndex.set(at + row * n + i, from + row * stride + i);
      for (const [i, block] of runs.blocks.entries()) {
        const [begin, end] = runs.bounds.slice(2 * i, 2 * i + 2) as [number, number];
        expect(end - begin).toBeGreaterThan(0);
        for (let e = begin; e < end; e++)
          if (Math.floor(wholeIndex.get(e)! / quantBlock) !== block) wrong.push(`${e} is not of block ${block}`);
        expect(runs.hasFirst[i]).toBe(wholeIndex.get(begin)! === block * quantBlock);
        if (!isCut(block)) expect(end - begin, `block ${block}`).toBe(Math.min(quantBlock, numel - block * quantBlock));
        if (!placement.isFirst) continue;
        count.set(block, (count.get(block) ?? 0) + end - begin);
        if (runs.hasFirst[i]) firsts.push(block);
      }
      if (placement.isFirst) saved.push(...scalePieces(placement, start, length, runs, (run) => runs.hasFirst[run]!));
      // Each piece says which number of which block: found again through the geometry of checkpoints.
      const columns = matrixOf(scaleShape(shape))[1];
      for (const { block, start: from, at, length: n } of scalePieces(placement, start, length, runs, () => true))
        for (let i = 0; i < n; i++) {
          const element = from + i;
          const number = (block.row + Math.floor(element / block.cols)) * columns + block.col + (element % block.cols);
          if (number !== runs.blocks[at + i]) wrong.push(`piece says ${number}, not ${runs.blocks[at + i]}`);
        }
    }
    for (let block = 0; block < numBlocks(shape); block++)
      expect(count.get(block), `block ${block}`).toBe(Math.min(quantBlock, numel - block * quantBlock));
    expect(firsts.sort((a, b) => a - b)).toEqual(Array.from({ length: numBlocks(shape) }, (_, i) => i));
    expect(wrong).toEqual([]);
    expect(coverageProblem(saved, scaleShape(shape))).toBeUndefined();
    if (shards === 1 && placements[0]!.isWhole) expect(cut).toEqual([]);
  });
});
