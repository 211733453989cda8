// Learning-rate schedules, against values of transformers.get_scheduler.
import { expect, test } from 'vitest';
import { scheduleFactor } from '../../src/optim/schedule.ts';

const factors = (name: 'constant' | 'linear' | 'cosine', total: number, warmup: number): number[] =>
  Array.from({ length: total }, (_, step) => scheduleFactor(name, step, total, warmup));

test('linear: warm-up from 0 to 1, then down to 0 at the end', () => {
  expect(factors('linear', 8, 2)).toEqual(
    [0, 0.5, 1, 5 / 6, 4 / 6, 0.5, 2 / 6, 1 / 6].map((x) => expect.closeTo(x, 12)),
  );
  expect(factors('linear', 4, 0)).toEqual([1, 0.75, 0.5, 0.25]);
});

test('cosine: half a period after warm-up', () => {
  expect(factors('cosine', 6, 2)).toEqual(
    [0, 0.5, 1, 0.8535533905932737, 0.5, 0.14644660940672627].map((x) => expect.closeTo(x, 12)),
  );
});

test('constant: 1 after warm-up', () => {
  expect(factors('constant', 5, 2)).toEqual([0, 0.5, 1, 1, 1]);
});

test('no factor is negative beyond the end', () => {
  for (const name of ['linear', 'cosine', 'constant'] as const) {
    expect(scheduleFactor(name, 20, 10)).toBeGreaterThanOrEqual(0);
    expect(scheduleFactor(name, 0, 1)).toBe(1);
  }
});
