// Packed rows and batches: what must hold for any data.
import { describe, expect, test } from 'vitest';
import { fillerBatch, makeBatch } from '../../src/data/batch.ts';
import { TokenDataset } from '../../src/data/dataset.ts';
import { packRows } from '../../src/data/packing.ts';
import { permutation } from '../../src/data/sampler.ts';

const lengths = (n: number, seed: number, most: number) =>
  Array.from(permutation(n, seed, 0), (x) => 1 + ((x * 7919) % most));

describe('packRows', () => {
  test.each([
    [1, 64],
    [2, 64],
    [3, 5],
    [4, 1],
  ])('seed %i, %i open rows', (seed, open) => {
    const length = lengths(700, seed, 90);
    const order = permutation(700, seed, 1);
    const rows = packRows(order, (i) => length[i]!, 128, open);
    expect(rows.flat().toSorted((a, b) => a - b)).toEqual(Array.from({ length: 700 }, (_, i) => i)); // each once
    for (const row of rows) expect(row.reduce((sum, i) => sum + length[i]!, 0)).toBeLessThanOrEqual(128);
    const total = length.reduce((a, b) => a + b, 0);
    if (open === 64) expect(rows.length).toBeLessThan((total / 128) * 1.1);
    expect(packRows(order, (i) => length[i]!, 128, open)).toEqual(rows);
  });

  test('an example that fits nowhere is an error', () => {
    expect(() => packRows([0], () => 10, 9)).toThrow('example 0 has 10 tokens and does not fit a row of 9');
    expect(packRows([0, 1, 2], () => 9, 9)).toEqual([[0], [1], [2]]);
  });
});

describe('batches', () => {
  const dataset = TokenDataset.from(
    lengths(40, 9, 30).map((n, e) => ({
      inputIds: Int32Array.from({ length: n }, (_, i) => 100 * e + i),
      mask: Uint8Array.from({ length: n }, (_, i) => ((e + i) % 3 ? 1 : 0)),
    })),
  );

  test('examples lie one after the other; the shift crosses no border', () => {
    const examples = [3, 17, 17, 0, 39];
    const batch = makeBatch(dataset, examples);
    expect(batch.cuSeqlens.length).toBe(6);
    expect(batch.numTokens).toBe(batch.cuSeqlens.at(-1));
    expect(batch.numExamples).toBe(5);
    examples.forEach((example, e) => {
      const [begin, end] = [batch.cuSeqlens[e]!, batch.cuSeqlens[e + 1]!];
      expect(Array.from(batch.inputIds.slice(begin, end), Number)).toEqual([...dataset.tokens(example)]);
      expect(Array.from(batch.positionIds.slice(begin, end), Number)).toEqual(
        Array.from({ length: end - begin }, (_, i) => i),
      );
      expect(batch.labels[begin]).toBe(-100n);
      const mask = dataset.mask(example);
      for (let i = begin + 1; i < end; i++) expect(batch.labels[i]).toBe(mask[i - begin] ? batch.inputIds[i] : -100n);
    });
    const numLabels = batch.labels.filter((label) => label !== -100n).length;
    expect(numLabels).toBe(examples.reduce((n, i) => n + dataset.labelsOf(i), 0));
  });

  test('a filler has tokens but no labels', () => {
    const batch = fillerBatch(dataset);
    expect(batch.numExamples).toBe(0);
    expect(batch.numTokens).toBeGreaterThan(0);
    expect(batch.labels.every((label) => label === -100n)).toBe(true);
  });
});
