// How many steps a run has, and what a resumed run says about options that changed.
import { expect, test } from 'vitest';
import { TokenDataset } from '../../src/data/dataset.ts';
import { DataLoader } from '../../src/data/loader.ts';
import type { FinetuneOptions } from '../../src/train/options.ts';
import { changedOptions, parseTrainState, totalSteps } from '../../src/train/train_state.ts';

const dataset = TokenDataset.from(
  Array.from({ length: 20 }, () => ({ inputIds: Int32Array.of(1, 2, 3), mask: Uint8Array.of(0, 1, 1) })),
);
const loader = (batchSize: number): DataLoader => new DataLoader(dataset, { batchSize });
const take = (from: DataLoader, n: number): DataLoader => {
  const steps = from[Symbol.iterator]();
  for (let i = 0; i < n; i++) steps.next();
  return from;
};

test('steps of whole and broken epochs; maxSteps wins', () => {
  expect(totalSteps(loader(4), { epochs: 3 }, 0)).toBe(15);
  expect(totalSteps(loader(4), { epochs: 0.5 }, 0)).toBe(3);
  expect(totalSteps(loader(8), { epochs: 2 }, 0)).toBe(6);
  expect(totalSteps(loader(4), { epochs: 3, maxSteps: 7 }, 0)).toBe(7);
});

test('a resumed run has as many steps, also with another global batch', () => {
  const first = take(loader(4), 7);
  expect(totalSteps(first, { epochs: 3 }, 7)).toBe(15);
  const second = loader(8);
  second.loadState({ ...take(loader(4), 7).state() });
  // One epoch of 5 steps and 2 steps of the next are done; in steps of 8: 3 + 1 of 9.
  expect(totalSteps(second, { epochs: 3 }, 7)).toBe(7 + 5);
});

test('options that change the training are named', () => {
  const before = { lr: 1e-4, seed: 1, logSteps: 1, warmupSteps: undefined } as unknown as FinetuneOptions;
  const now = { lr: 2e-4, seed: 1, logSteps: 5, warmupSteps: 3 } as unknown as FinetuneOptions;
  expect(changedOptions(before, now)).toEqual([
    'lr was 0.0001 in the checkpoint and is 0.0002 now',
    'warmupSteps was nothing in the checkpoint and is 3 now',
  ]);
});

test('a checkpoint of another program is not a training state', () => {
  expect(() => parseTrainState({ mine: 1 }, '/x/checkpoint-3')).toThrow(
    /\/x\/checkpoint-3: .*not saved by finetune.*mine/,
  );
});
