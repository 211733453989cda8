// Which folders count as checkpoints, which one a run resumes from, and what is cleared away.
import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { cleanLeftovers, findCheckpoint, listCheckpoints, pruneCheckpoints } from '../../src/train/checkpoints.ts';

let out: string;

beforeEach(async () => {
  out = await mkdtemp(join(tmpdir(), 'checkpoints-'));
});
afterEach(() => rm(out, { recursive: true }));

async function folder(name: string, savedAt?: number, run = 'a'): Promise<void> {
  const dir = join(out, name);
  await mkdir(dir);
  if (savedAt === undefined) return;
  const state = {
    format: 'rankzero.sharded',
    version: 1,
    id: 'x',
    savedAt,
    worldSize: 1,
    shards: 1,
    dtypes: {},
    ties: [],
    state: { run },
  };
  await writeFile(join(dir, 'state.json'), JSON.stringify(state));
}

const ignore = (): void => {};

test('auto is the checkpoint that was saved last, not the one with most steps', async () => {
  await folder('checkpoint-500', 100);
  await folder('checkpoint-20', 200);
  await folder('other', 300);
  expect(await findCheckpoint(out, 'auto', ignore)).toBe(join(out, 'checkpoint-20'));
});

test('auto skips unfinished checkpoints and says so', async () => {
  await folder('checkpoint-10', 100);
  await folder('checkpoint-20');
  await folder('checkpoint-30.tmp-0123ab', 300);
  const skipped: string[] = [];
  expect(await findCheckpoint(out, 'auto', (why) => skipped.push(why))).toBe(join(out, 'checkpoint-10'));
  expect(skipped).toEqual([expect.stringMatching(/checkpoint-20: not a complete checkpoint: it has no state\.json/)]);
});

test('auto without a checkpoint, or without the folder, is a fresh start', async () => {
  expect(await findCheckpoint(out, 'auto', ignore)).toBeUndefined();
  expect(await findCheckpoint(join(out, 'nothing'), 'auto', ignore)).toBeUndefined();
  expect(await findCheckpoint(out, undefined, ignore)).toBeUndefined();
});

test('a folder that holds checkpoints is not one', async () => {
  await folder('checkpoint-10', 100);
  await expect(findCheckpoint(out, out, ignore)).rejects.toThrow(/holds checkpoints; name one of them.*checkpoint-10/);
});

test('pruning keeps the newest of its own run', async () => {
  await folder('checkpoint-1', 100);
  await folder('checkpoint-2', 200);
  await folder('checkpoint-3', 300);
  await folder('checkpoint-900', 50, 'another run');
  await pruneCheckpoints(out, 'a', 2);
  expect((await readdir(out)).sort()).toEqual(['checkpoint-2', 'checkpoint-3', 'checkpoint-900']);
});

test('what a killed run left is removed, and a checkpoint that was being replaced comes back', async () => {
  await folder('checkpoint-1', 100);
  await folder('checkpoint-2.old-0123ab', 200);
  await folder('checkpoint-1.old-0123ab', 50);
  await folder('checkpoint-3.tmp-0123ab');
  await folder('checkpoint-4.del-0123ab', 10);
  await folder('checkpoint-backup', 10);
  await writeFile(join(out, '.model.safetensors.123-0123abcd.tmp'), '');
  await writeFile(join(out, 'notes.tmp'), '');
  await cleanLeftovers(out);
  expect((await readdir(out)).sort()).toEqual(['checkpoint-1', 'checkpoint-2', 'checkpoint-backup', 'notes.tmp']);
  expect((await listCheckpoints(out)).map(({ step, savedAt }) => [step, savedAt])).toEqual([
    [2, 200],
    [1, 100],
  ]);
});
