// The order of data: determinism, division over ranks, exact resume.
import { describe, expect, test } from 'vitest';
import { TokenDataset } from '../../src/data/dataset.ts';
import { DataLoader, type DataLoaderOptions, type DataStep } from '../../src/data/loader.ts';
import { permutation, splitGlobalBatch } from '../../src/data/sampler.ts';

/** Example i is [1000 i, 1000 i + 1, …]: a batch shows which examples it has. */
const datasetOf = (n: number) =>
  TokenDataset.from(
    Array.from({ length: n }, (_, i) => ({
      inputIds: Int32Array.from({ length: 3 + ((i * 31) % 17) }, (_, j) => 1000 * i + j),
      mask: Uint8Array.from({ length: 3 + ((i * 31) % 17) }, (_, j) => (j > i % 3 ? 1 : 0)),
    })),
  );
const dataset = datasetOf(103);

const examplesOf = (step: DataStep): number[] =>
  step.microBatches.flatMap((batch) =>
    batch.numExamples === 0 ? [] : Array.from(batch.cuSeqlens.slice(0, -1), (at) => Number(batch.inputIds[at]) / 1000),
  );

const epochOf = (options: DataLoaderOptions) => [...new DataLoader(dataset, options).epoch()];

describe('permutation', () => {
  test('is a permutation, the same each time, another for each epoch and seed', () => {
    const order = permutation(1000, 42, 0);
    expect([...order].sort((a, b) => a - b)).toEqual(Array.from({ length: 1000 }, (_, i) => i));
    expect(permutation(1000, 42, 0)).toEqual(order);
    for (const other of [permutation(1000, 42, 1), permutation(1000, 43, 0), permutation(1000, 42 + 2 ** 32, 0)]) {
      const same = order.filter((x, i) => other[i] === x).length;
      expect(same).toBeLessThan(10);
    }
  });

  test('does not change between versions', () => {
    expect([...permutation(10, 0, 0)]).toEqual([8, 0, 3, 2, 5, 7, 9, 6, 4, 1]);
  });

  test('every place is as likely', () => {
    const counts = new Array(8).fill(0);
    for (let epoch = 0; epoch < 8000; epoch++) counts[permutation(8, 7, epoch).indexOf(0)]++;
    for (const count of counts) expect(Math.abs(count - 1000)).toBeLessThan(150); // 5 standard deviations
  });

  test.each([Number.NaN, 0.5])('seed %d is refused', (seed) => {
    expect(() => permutation(3, seed, 0)).toThrow(/seed must be a whole number/);
  });
});

test('ranks get as many micro-batches, and each item goes to one rank', () => {
  for (const [n, dpSize, batchSize] of [
    [16, 4, 2],
    [13, 4, 2],
    [1, 3, 2],
    [5, 2, 4],
  ] as const) {
    const items = Array.from({ length: n }, (_, i) => i);
    const parts = Array.from({ length: dpSize }, (_, rank) => splitGlobalBatch(items, rank, dpSize, batchSize));
    expect(new Set(parts.map((p) => p.length)).size).toBe(1);
    expect(parts.flat(2).sort((a, b) => a - b)).toEqual(items);
    for (const batch of parts.flat()) expect(batch.length).toBeLessThanOrEqual(batchSize);
  }
});

describe.each([undefined, 64])('packTo %s', (packTo) => {
  const options = (dpRank: number, dpSize: number, batchSize: number, gradAccum: number) => ({
    batchSize,
    gradAccum,
    dpRank,
    dpSize,
    seed: 5,
    packTo,
  });

  test('a step has the same examples on any number of ranks', () => {
    const alone = epochOf(options(0, 1, 8, 1));
    expect(alone.flatMap(examplesOf).sort((a, b) => a - b)).toEqual(Array.from({ length: 103 }, (_, i) => i));
    for (const [dpSize, batchSize, gradAccum] of [
      [2, 4, 1],
      [4, 2, 1],
      [2, 2, 2],
      [8, 1, 1],
      [1, 2, 4],
    ] as const) {
      const ranks = Array.from({ length: dpSize }, (_, rank) => epochOf(options(rank, dpSize, batchSize, gradAccum)));
      alone.forEach((step, i) => {
        const parts = ranks.map((steps) => steps[i]!);
        expect(parts.flatMap(examplesOf).sort((a, b) => a - b)).toEqual(examplesOf(step).sort((a, b) => a - b));
        expect(new Set(parts.map((p) => p.microBatches.length)).size).toBe(1);
        const given = parts.flatMap((p) => p.microBatches).flatMap((batch) => [...batch.labels]);
        const labels = given.filter((label) => label !== -100n).length;
        for (const part of parts) expect(part).toMatchObject({ numItems: labels, numTokens: step.numTokens });
        expect(labels).toBe(step.numItems);
      });
      for (const steps of ranks) expect(steps.length).toBe(alone.length);
    }
  });

  test('resumes exactly, in the middle and between epochs, on other numbers of ranks', () => {
    const first = new DataLoader(dataset, options(0, 1, 8, 1));
    const seen: { state: ReturnType<DataLoader['state']>; step: DataStep }[] = [];
    for (const step of first) {
      seen.push({ state: first.state(), step });
      if (step.epoch === 2) break;
    }
    for (const at of [0, 3, first.stepsInEpoch(0) - 1, seen.length - 2]) {
      for (const dpSize of [1, 2, 4]) {
        const parts = Array.from({ length: dpSize }, (_, rank) => {
          const loader = new DataLoader(dataset, options(rank, dpSize, 8 / dpSize, 1));
          loader.loadState(JSON.parse(JSON.stringify(seen[at]!.state)));
          return loader[Symbol.iterator]().next().value;
        });
        const want = seen[at + 1]!.step;
        expect(parts[0]).toMatchObject({ epoch: want.epoch, step: want.step, numItems: want.numItems });
        expect(parts.flatMap(examplesOf).sort((a, b) => a - b)).toEqual(examplesOf(want).sort((a, b) => a - b));
      }
    }
  });

  test('without shuffling the order is that of the file', () => {
    const steps = epochOf({ batchSize: 10, shuffle: false });
    expect(steps.flatMap(examplesOf)).toEqual(Array.from({ length: 103 }, (_, i) => i));
  });
});

test('epochs differ in order, not in content', () => {
  const loader = new DataLoader(dataset, { batchSize: 103 });
  const [a, b] = [[...loader.epoch()], [...loader.epoch()]];
  expect([a[0]!.epoch, b[0]!.epoch]).toEqual([0, 1]);
  expect(examplesOf(a[0]!)).not.toEqual(examplesOf(b[0]!));
  expect(a[0]!.numTokens).toBe(dataset.numTokens);
});

test('ranks without examples in the last step get a filler', () => {
  const steps = Array.from({ length: 4 }, (_, dpRank) => [
    ...new DataLoader(datasetOf(5), { batchSize: 1, dpRank, dpSize: 4 }).epoch(),
  ]);
  expect(steps.map((s) => s[1]!.microBatches.map((b) => b.numExamples))).toEqual([[1], [0], [0], [0]]);
  expect(steps[3]![1]).toMatchObject({ numExamples: 1, stepsInEpoch: 2 });
});

test('total steps', () => {
  const loader = new DataLoader(dataset, { batchSize: 10 });
  expect([loader.totalSteps(1), loader.totalSteps(3), loader.totalSteps(0.5), loader.totalSteps(1.01)]).toEqual([
    11, 33, 6, 12,
  ]);
  const packed = new DataLoader(dataset, { batchSize: 2, packTo: 64, gradAccum: 2 });
  const counted = [0, 1, 2].map(() => [...packed.epoch()].length).reduce((a, b) => a + b);
  expect(packed.totalSteps(3)).toBe(counted);
});

test('what does not line up is refused', () => {
  const loader = new DataLoader(dataset, { batchSize: 8 });
  loader[Symbol.iterator]().next();
  const state = loader.state();
  expect(() => new DataLoader(dataset, { batchSize: 8, seed: 1 }).loadState(state)).toThrow(/seed was 0 and is 1/);
  expect(() => new DataLoader(datasetOf(9), { batchSize: 8 }).loadState(state)).toThrow(/numExamples was 103 and is 9/);
  expect(() => new DataLoader(dataset, { batchSize: 16 }).loadState(state)).toThrow(
    /after 1 steps of 8 examples: that is no whole number of steps of 16/,
  );
  const half = new DataLoader(dataset, { batchSize: 4 });
  half.loadState(state);
  expect(half.state().step).toBe(2);
  expect(() => new DataLoader(dataset, { batchSize: 0 })).toThrow(/batchSize must be a whole number from 1, got 0/);
  expect(() => new DataLoader(dataset, { batchSize: 1, dpRank: 2, dpSize: 2 })).toThrow(
    /dpRank must be from 0 to 1, got 2/,
  );
});
