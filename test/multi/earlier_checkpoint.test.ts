// A checkpoint of an earlier version loads, on as many ranks and on others.
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { caseDir } from '../reference/cases.ts';
import { expectRanks, fixture } from './helpers.ts';

// What the version that wrote it computed in steps 3 and 4, on the ranks that wrote it.
const continued = [4.633419990539551, 4.528463840484619];
const checkpoint = join(caseDir('checkpoints'), 'gpt-neox-tp2-shards2');

it.each([
  [4, 2],
  [1, 1],
  [2, 1],
  [4, 4],
])('goes on from 4 ranks with two tensor-parallel ones on %i with %i', async (world, tp) => {
  const { stdout } = await expectRanks(world, fixture('earlier_checkpoint.mjs'), { args: [checkpoint, String(tp)] });
  for (const text of stdout) {
    const { losses, step } = JSON.parse(text);
    expect(step).toBe(2);
    if (world === 4 && tp === 2) expect(losses).toEqual(continued);
    for (const [i, loss] of losses.entries()) expect(Math.abs(loss / continued[i]! - 1)).toBeLessThan(1e-6);
  }
});
