// Agreement of a world of one: what runs, in which order, and which error counts. Of several ranks: test/multi.
import { beforeAll, expect, test } from 'vitest';
import { fromRank0, onAllRanks } from '../../src/distributed/agree.ts';
import { dist } from '../../src/distributed/index.ts';

beforeAll(() => dist.initProcessGroup({ quiet: true }));

test('what succeeds is not cleaned up', async () => {
  const events: string[] = [];
  expect(
    await onAllRanks(
      dist.group,
      'saving',
      () => 3,
      () => events.push('cleaned'),
    ),
  ).toBe(3);
  expect(events).toEqual([]);
});

test('what fails is cleaned up before it throws', async () => {
  const events: string[] = [];
  const fail = (): never => {
    throw Object.assign(new Error('no room'), { code: 'ENOSPC' });
  };
  const cleanUp = async (): Promise<void> => {
    await new Promise((resolve) => setTimeout(resolve, 20));
    events.push('cleaned');
  };
  const run = onAllRanks(dist.group, 'saving', fail, cleanUp).catch((error: Error) => {
    events.push(`${error.name}: ${error.message}`);
    return (error as { code?: string }).code;
  });
  expect(await run).toBe('ENOSPC');
  expect(events).toEqual(['cleaned', 'RankError: saving failed: no room']);
});

test('an error of cleaning up does not hide the one before', async () => {
  const fail = (why: string) => (): never => {
    throw new Error(why);
  };
  await expect(onAllRanks(dist.group, 'saving', fail('first'), fail('second'))).rejects.toThrow('saving failed: first');
});

test('fromRank0 gives what is JSON of the value', async () => {
  expect(await fromRank0(dist.group, 'starting', () => ({ id: 'a', left: undefined }))).toEqual({ id: 'a' });
  expect(await fromRank0(dist.group, 'starting', () => undefined)).toBeNull();
});
