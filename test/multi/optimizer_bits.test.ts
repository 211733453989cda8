// 8-bit AdamW: blocks are of whole parameters, so that the same gradients give the same bits however the model is divided.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { expectRanks, fixture } from './helpers.ts';

const dir = mkdtempSync(join(tmpdir(), 'bits-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

interface Settings {
  tp?: number;
  steps: [number, number];
  load?: string;
  save?: string;
}

// Odd sizes and biases; fused rows.
const names = ['llama-bias', 'gpt-neox'];

/** The digest of each model, the same on every rank. */
async function digests(world: number, { load, save, ...settings }: Settings): Promise<string[]> {
  const path = (folder: string | undefined, name: string) => folder && join(dir, `${folder}-${name}`);
  const runs = names.map((name) => ({ name, ...settings, load: path(load, name), save: path(save, name) }));
  const { stdout } = await expectRanks(world, fixture('optimizer_bits.mjs'), { args: [JSON.stringify(runs)] });
  const all = stdout.map((text) =>
    text
      .split('RESULT ')
      .slice(1)
      .map((json) => JSON.parse(json) as string),
  );
  for (const own of all) expect(own).toEqual(all[0]);
  expect(all[0]).toHaveLength(names.length);
  return all[0]!;
}

describe('AdamW8bit', () => {
  let alone: string[];

  it('gives the bits of one rank in every division', { timeout: 120_000 }, async () => {
    alone = await digests(1, { steps: [0, 5] });
    expect(await digests(1, { steps: [0, 4] })).not.toEqual(alone);
    expect(await digests(2, { steps: [0, 5] }), '2 shards').toEqual(alone);
    expect(await digests(3, { steps: [0, 5] }), '3 shards').toEqual(alone);
    expect(await digests(2, { tp: 2, steps: [0, 5] }), 'tensor-parallel degree 2').toEqual(alone);
    expect(await digests(4, { tp: 2, steps: [0, 5] }), 'tensor-parallel degree 2, 2 shards').toEqual(alone);
  });

  it('goes on in other divisions with the bits of one rank', { timeout: 120_000 }, async () => {
    await digests(3, { steps: [0, 2], save: 'a' });
    await digests(4, { tp: 2, steps: [2, 3], load: 'a', save: 'b' });
    await digests(2, { steps: [3, 4], load: 'b', save: 'c' });
    expect(await digests(2, { tp: 2, steps: [4, 5], load: 'c' })).toEqual(alone);
  });
});
