// Fused weights are segments of a dimension: nothing but the placement knows of it.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { expectRanks, fixture } from './helpers.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'rankzero-segments-'));
});
afterAll(() => rm(folder, { recursive: true }));

const run = async (world: number, tp: number, out: string): Promise<unknown[]> =>
  (await expectRanks(world, fixture('segments.mjs'), { args: [out, String(tp)] })).stdout.map((text) =>
    JSON.parse(text),
  );

it('are loaded, gathered and saved as they were', async () => {
  for (const said of await run(4, 2, join(folder, 'first')))
    expect(said).toEqual({ pieces: 3, state: true, saved: true });
});

it.each([
  [1, 1],
  [4, 2],
  [4, 4],
  [3, 1],
])('are read from parts by %i ranks with tensor-parallel degree %i', async (world, tp) => {
  for (const said of await run(world, tp, folder)) expect(said).toEqual({ state: true });
});
