// Names of models: folders, snapshots of the local Hugging Face cache, and the error that tells how to download.
import { mkdir, mkdtemp, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { hubCache, resolveModel } from '../../src/checkpoint/hub.ts';

let cacheDir: string;
const commit = '0123456789abcdef0123456789abcdef01234567';

beforeAll(async () => {
  cacheDir = await mkdtemp(join(tmpdir(), 'rz-hub-'));
  const repo = join(cacheDir, 'models--org--tiny.v1');
  await mkdir(join(repo, 'refs', 'pr'), { recursive: true });
  await mkdir(join(repo, 'snapshots', commit), { recursive: true });
  await writeFile(join(repo, 'refs', 'main'), commit);
  await writeFile(join(repo, 'refs', 'pr', '1'), `${commit}\n`);
});

describe('resolveModel', () => {
  test('folders are taken as they are', async () => {
    expect(await resolveModel('examples/moby-llama')).toBe('examples/moby-llama');
  });

  test('hub ids are found by branch, ref and commit', async () => {
    const snapshot = join(cacheDir, 'models--org--tiny.v1', 'snapshots', commit);
    expect(await resolveModel('org/tiny.v1', { cacheDir })).toBe(snapshot);
    expect(await resolveModel('org/tiny.v1', { cacheDir, revision: 'pr/1' })).toBe(snapshot);
    expect(await resolveModel('org/tiny.v1', { cacheDir, revision: commit })).toBe(snapshot);
  });

  test('what is missing is named with the command that mends it', async () => {
    await expect(resolveModel('org/none', { cacheDir })).rejects.toThrow(
      `there is no folder org/none, and the Hugging Face cache ${cacheDir} has no model of that name. Download it with: hf download org/none (older: huggingface-cli download org/none)`,
    );
    await expect(resolveModel('org/tiny.v1', { cacheDir, revision: 'v2' })).rejects.toThrow(
      /no revision "v2" of that model\. Download it with: hf download org\/tiny\.v1 --revision v2/,
    );
  });

  test.each(['', './nowhere', '/nowhere/at/all', 'a/b/c', '../x', 'org/..'])('%j is not a name', async (name) => {
    await expect(resolveModel(name, { cacheDir })).rejects.toThrow(/is not a folder, and not a hub id/);
  });

  test('a revision cannot leave the cache', async () => {
    await expect(resolveModel('org/tiny.v1', { cacheDir, revision: '../../..' })).rejects.toThrow(/not a revision/);
  });
});

test('the cache is where huggingface_hub has it', () => {
  expect(hubCache({ HF_HUB_CACHE: '/a', HF_HOME: '/b' })).toBe('/a');
  expect(hubCache({ HF_HOME: '/b' })).toBe('/b/hub');
  expect(hubCache({ XDG_CACHE_HOME: '/c' })).toBe('/c/huggingface/hub');
  expect(hubCache({})).toMatch(/\/\.cache\/huggingface\/hub$/);
});
