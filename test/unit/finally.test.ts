// settle: what is closed, when, and with what.
import { expect, test } from 'vitest';
import { settle } from '../../src/core/finally.ts';

function recorded<T>(fn: () => T): { closed: unknown[]; run: () => T } {
  const closed: unknown[] = [];
  return { closed, run: () => settle(fn, (value) => void closed.push(value)) };
}

test('closes once, behind a synchronous function, with its value', () => {
  const { closed, run } = recorded(() => 3);
  expect(run()).toBe(3);
  expect(closed).toEqual([3]);
});

test('closes when the promise settles, with its value', async () => {
  const { closed, run } = recorded(async () => 3);
  const pending = run();
  expect(closed).toEqual([]);
  expect(await pending).toBe(3);
  expect(closed).toEqual([3]);
});

test('closes once after an error, which goes on', async () => {
  const sync = recorded((): number => {
    throw new Error('no');
  });
  expect(sync.run).toThrow('no');
  expect(sync.closed).toEqual([undefined]);
  const later = recorded(() => Promise.reject(new Error('later')));
  await expect(later.run()).rejects.toThrow('later');
  expect(later.closed).toEqual([undefined]);
});

test('an error of closing replaces the value, and closing is not tried again', async () => {
  let times = 0;
  const close = (): void => {
    times++;
    throw new Error('closing');
  };
  expect(() => settle(() => 3, close)).toThrow('closing');
  await expect(settle(async () => 3, close)).rejects.toThrow('closing');
  expect(times).toBe(2);
});
