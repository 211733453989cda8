// The checkpoint folders of a run: `checkpoint-<step>` in the output folder. Only complete ones have that name; what a killed
// run left behind is put right when the next one starts. Runs on rank 0.
import { readdir, rename, rm } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { readManifest } from '../checkpoint/sharded-reader.ts';

/** A complete checkpoint. */
export interface FoundCheckpoint {
  dir: string;
  step: number;
  /** Seconds since 1970. */
  savedAt: number;
  /** The run that saved it; resumed runs keep the id. */
  run: string | undefined;
}

export function checkpointDir(out: string, step: number): string {
  return join(out, `checkpoint-${step}`);
}

async function namesIn(dir: string): Promise<string[]> {
  return readdir(dir).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return [];
    throw error;
  });
}

/** Complete checkpoints, the one saved last first. Others are left out; `onSkip` hears why. */
export async function listCheckpoints(
  out: string,
  onSkip: (why: string) => void = () => {},
): Promise<FoundCheckpoint[]> {
  const found: FoundCheckpoint[] = [];
  for (const name of await namesIn(out)) {
    const step = /^checkpoint-(\d+)$/.exec(name)?.[1];
    if (step === undefined) continue;
    const dir = join(out, name);
    try {
      const { savedAt, state } = await readManifest(dir);
      found.push({ dir, step: Number(step), savedAt, run: typeof state.run === 'string' ? state.run : undefined });
    } catch (error) {
      onSkip((error as Error).message);
    }
  }
  return found.sort((a, b) => b.savedAt - a.savedAt || b.step - a.step);
}

/** The folder that `resume` means: itself, or for `auto` the checkpoint of `out` that was saved last, if there is one. */
export async function findCheckpoint(
  out: string,
  resume: string | undefined,
  onSkip: (why: string) => void,
): Promise<string | undefined> {
  if (resume === undefined) return undefined;
  if (resume === 'auto') return (await listCheckpoints(out, onSkip))[0]?.dir;
  const inside = await listCheckpoints(resume);
  if (inside.length > 0) {
    throw new Error(
      `--resume ${resume}: this folder holds checkpoints; name one of them, for example ${inside[0]!.dir}`,
    );
  }
  return resolve(resume);
}

/** Removes unfinished saves of killed runs, and puts back a checkpoint that was being replaced. */
export async function cleanLeftovers(out: string): Promise<void> {
  const names = await namesIn(out);
  for (const name of names) {
    const path = join(out, name);
    const replaced = /^(checkpoint-\d+)\.old-[0-9a-f]+$/.exec(name)?.[1];
    if (replaced !== undefined && !names.includes(replaced)) await rename(path, join(out, replaced));
    else if (replaced !== undefined || /^checkpoint-\d+\.(tmp|del)-[0-9a-f]+$/.test(name)) {
      await rm(path, { recursive: true, force: true });
    } else if (/^\..+\.\d+-[0-9a-f]{8}\.tmp$/.test(name)) await rm(path, { force: true });
  }
}

/** Removes all but the newest `keep` checkpoints of a run. A folder loses its name first, so that none is ever half there. */
export async function pruneCheckpoints(out: string, run: string, keep: number): Promise<string[]> {
  const old = (await listCheckpoints(out)).filter((checkpoint) => checkpoint.run === run).slice(keep);
  for (const { dir, savedAt } of old) {
    const doomed = `${dir}.del-${Math.floor(savedAt * 1000).toString(16)}`;
    await rename(dir, doomed);
    await rm(doomed, { recursive: true, force: true });
  }
  return old.map(({ dir }) => dir);
}
