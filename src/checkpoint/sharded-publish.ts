// The last step of a sharded save: state.json, and the rename that makes the folder a checkpoint.
import { open, rename, rm } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { syncFolder } from './safetensors.ts';
import { type ShardedManifest, stateName } from './sharded-format.ts';

/** Completes `temporary`, which holds the files of all ranks, and gives it the name `dir`; an older `dir` is replaced. */
export async function publishSharded(temporary: string, dir: string, manifest: ShardedManifest): Promise<void> {
  await writeFlushed(join(temporary, stateName), `${JSON.stringify(manifest)}\n`);
  await syncFolder(temporary);
  await putInPlace(temporary, resolve(dir), manifest.id);
}

async function writeFlushed(path: string, text: string): Promise<void> {
  const file = await open(path, 'wx');
  try {
    await file.writeFile(text);
    await file.sync();
  } finally {
    await file.close();
  }
}

/** A kill between the two renames leaves the old folder as `….old-…`, which cleaning up puts back. */
async function putInPlace(temporary: string, dir: string, id: string): Promise<void> {
  const old = `${dir}.old-${id}`;
  const replaces = await rename(dir, old).then(
    () => true,
    (error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return false;
      throw error;
    },
  );
  await rename(temporary, dir);
  await syncFolder(dirname(dir));
  if (replaces) await rm(old, { recursive: true, force: true });
}
