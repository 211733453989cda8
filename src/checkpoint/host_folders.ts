// A folder of a job on several hosts is one that all see, or each host has one of its own under the same path, or some share one. For
// each there is one rank that makes, renames and cleans it: its owner. Nothing is believed about file systems: a file with a name of
// its own is made, and looked for. On one host rank 0 is the owner, and nothing is asked.
import { randomBytes } from 'node:crypto';
import { rmSync } from 'node:fs';
import { mkdir, mkdtemp, open, rename, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { fromRank0, onAllRanks } from '../distributed/agree.ts';
import { allGatherJson, broadcastJson } from '../distributed/exchange.ts';
import { dist } from '../distributed/index.ts';
import type { ProcessGroup } from '../distributed/process_group.ts';
import { native } from '../native.ts';
import { dtypeNumber } from '../tensor/dtype.ts';
import { computeStream } from '../tensor/streams.ts';
import { Tensor } from '../tensor/tensor.ts';
import { syncFolder } from './safetensors.ts';

/** What another host has just made may be missing for so long, where attributes of a network file system are cached. */
const patience = 5000;

const isLeader = (group: ProcessGroup): boolean => group.ranksOnHost[0] === group.rank;

const exists = (path: string): Promise<boolean> =>
  stat(path).then(
    () => true,
    (error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return false;
      throw error;
    },
  );

/** Whether this rank is the owner of `dir`, as its host sees it; the folder is made where it is missing. Collective; blocks. */
export async function ownsFolder(dir: string): Promise<boolean> {
  const world = dist.group;
  const what = `making ${dir}`;
  if (world.hosts === 1) {
    await onAllRanks(world, what, async () => void (world.rank === 0 && (await mkdir(dir, { recursive: true }))));
    return world.rank === 0;
  }
  const name = broadcastJson(world, world.rank === 0 ? `.rankzero-${randomBytes(8).toString('hex')}` : undefined);
  const probe = join(dir, name);
  let isOwner = false;
  // One host after the other: of those that share a folder the first one makes the file.
  for (let host = 0; host < world.hosts; host++) {
    await onAllRanks(world, what, async () => {
      if (world.hostOf[world.rank] !== host || !isLeader(world) || (await exists(probe))) return;
      await mkdir(dir, { recursive: true });
      await writeFile(probe, '');
      isOwner = true;
    });
  }
  await onAllRanks(world, what, async () => void (isOwner && (await rm(probe, { force: true }))));
  return isOwner;
}

/** `read`, again for a while as long as it finds nothing, in a job of several hosts. */
export async function patiently<T>(read: () => Promise<T>): Promise<T> {
  const until = Date.now() + (dist.isInitialized() && dist.group.hosts > 1 ? patience : 0);
  for (;;) {
    try {
      return await read();
    } catch (error) {
      const { code, cause } = error as { code?: string; cause?: { code?: string } };
      if ((code !== 'ENOENT' && cause?.code !== 'ENOENT') || Date.now() > until) throw error;
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
  }
}

const chunkBytes = 16 << 20;

/**
 * Sees to it that every host has the files `names` in `dir`: those that a host lacks are sent by one that has them, and stay there.
 * Collective; blocks. Error, the same on all ranks: a file that no host has.
 */
export async function completeFolder(dir: string, names: readonly string[]): Promise<void> {
  const world = dist.group;
  if (world.hosts === 1) return;
  const own = await onAllRanks(world, `looking into ${dir}`, async () => {
    if (!isLeader(world)) return null;
    await mkdir(dir, { recursive: true });
    return Promise.all(
      names.map(async (name) => ((await exists(join(dir, name))) ? (await stat(join(dir, name))).size : -1)),
    );
  });
  const found = allGatherJson(world, own);
  const leaders = found.flatMap((sizes, rank) => (sizes ? [rank] : []));
  const missing = names.filter((_, i) => leaders.every((rank) => found[rank]![i]! < 0));
  if (missing.length > 0) throw new Error(`${dir}: no host of this job has ${missing.join(', ')}`);
  for (const [i, name] of names.entries()) {
    const from = leaders.find((rank) => found[rank]![i]! >= 0)!;
    const lacking = leaders.filter((rank) => found[rank]![i]! < 0);
    if (lacking.length === 0) continue;
    const bytes = found[from]![i]!;
    await onAllRanks(world, `bringing ${join(dir, name)} to other hosts`, async () => {
      if (world.rank === from) for (const to of lacking) sendFile(join(dir, name), bytes, to);
      else if (lacking.includes(world.rank)) await receiveFile(dir, name, bytes, from);
    });
  }
}

/**
 * Files of rank 0's host for all hosts: where one lacks any file of a folder, that folder's files are sent to a temporary folder there,
 * which goes when the process ends. `paths`: absolute, of rank 0. Returns where each is on this host. Collective; blocks.
 */
export async function bringFiles(paths: readonly string[]): Promise<(path: string) => string> {
  const world = dist.group;
  const files = await fromRank0(world, 'looking for files', () =>
    Promise.all(paths.map(async (path) => ({ path, bytes: (await stat(path)).size }))),
  );
  const folders = [...new Set(files.map(({ path }) => dirname(path)))];
  const own = await onAllRanks(world, 'looking for files', async () => {
    if (!isLeader(world)) return null;
    const has = await Promise.all(files.map(({ path }) => exists(path)));
    const lacks = folders.map((folder) => files.some(({ path }, i) => dirname(path) === folder && !has[i]));
    if (!lacks.includes(true)) return { lacks, temporary: '' };
    const temporary = await mkdtemp(join(tmpdir(), 'rankzero-files-'));
    process.once('exit', () => rmSync(temporary, { recursive: true, force: true }));
    return { lacks, temporary };
  });
  const all = allGatherJson(world, own);
  const here = all[world.ranksOnHost[0]!]!;
  const place = ({ lacks, temporary }: typeof here, path: string): string => {
    const folder = folders.indexOf(dirname(path));
    return lacks[folder] ? join(temporary, String(folder), basename(path)) : path;
  };
  for (const { path, bytes } of files) {
    const lacking = all.flatMap((theirs, rank) => (theirs && place(theirs, path) !== path ? [rank] : []));
    if (lacking.length === 0) continue;
    await onAllRanks(world, `bringing ${path} to other hosts`, async () => {
      if (world.rank === 0) for (const to of lacking) sendFile(path, bytes, to);
      else if (lacking.includes(world.rank)) {
        const target = place(here, path);
        await mkdir(dirname(target), { recursive: true });
        await receiveFile(dirname(target), basename(target), bytes, 0);
      }
    });
  }
  return (path) => place(here, path);
}

function sendFile(path: string, bytes: number, to: number): void {
  const file = native.fileOpen(path);
  try {
    for (let at = 0; at < bytes; at += chunkBytes) {
      using chunk = Tensor.empty([Math.min(chunkBytes, bytes - at)], 'uint8', 'staging');
      native.fileRead(file, at, chunk.handle, dtypeNumber('uint8'));
      dist.group.send(chunk.handle, to);
      native.streamSynchronize(computeStream());
    }
  } finally {
    native.fileClose(file);
  }
}

async function receiveFile(dir: string, name: string, bytes: number, from: number): Promise<void> {
  const temporary = join(dir, `.${name}.${process.pid}-${randomBytes(4).toString('hex')}.tmp`);
  const file = await open(temporary, 'wx');
  try {
    for (let at = 0; at < bytes; at += chunkBytes) {
      using chunk = Tensor.empty([Math.min(chunkBytes, bytes - at)], 'uint8', 'staging');
      dist.group.recv(chunk.handle, from);
      await file.write((await chunk.data()) as unknown as Uint8Array);
    }
    await file.sync();
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  } finally {
    await file.close();
  }
  await rename(temporary, join(dir, name));
  await syncFolder(dir);
}
