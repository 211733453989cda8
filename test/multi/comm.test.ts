// One body of collective tests for every world size, and what the groups leave behind.
import { describe, expect, it } from 'vitest';
import { expectRanks, fixture, sharedMemoryHolders } from './helpers.ts';

describe('collectives', () => {
  it.each([1, 2, 3, 4])('give their definition on %i ranks', async (world) => {
    const { stdout } = await expectRanks(world, fixture('collectives.mjs'), { timeout: 100_000 });
    expect(stdout).toEqual(Array.from({ length: world }, () => 'ok\n'));
  });

  it.each([2, 3])('hold over a long random row of calls on three streams and groups of %i ranks', async (world) => {
    const { stdout } = await expectRanks(world, fixture('comm_random.mjs'), { args: [String(world * 7919), '400'] });
    expect(stdout).toEqual(Array.from({ length: world }, () => 'ok\n'));
  });

  it('leave no shared memory behind', async () => {
    await expectRanks(2, fixture('comm_memory.mjs'));
    expect([...sharedMemoryHolders().keys()].filter((pid) => pid !== process.pid)).toEqual([]);
  });
});
