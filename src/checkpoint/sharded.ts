// Sharded training checkpoints: every rank writes its own pieces of parameters and optimizer state, and reads just the
// ranges it needs, at any world size and strategy. A checkpoint folder appears under its name only when all of it is on the
// disk; a save that fails on one rank fails on all and leaves what was there.
import { randomBytes } from 'node:crypto';
import { mkdir, rm } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import type { JsonObject } from '../core/json.ts';
import { fromRank0, onAllRanks } from '../distributed/agree.ts';
import { dist } from '../distributed/index.ts';
import { tiedNames } from '../nn/tied.ts';
import type { DType } from '../tensor/dtype.ts';
import { completeFolder, ownsFolder, patiently } from './host_folders.ts';
import type { ShardedModel, ShardedOptimizer } from './sharded_state.ts';
import { type ShardedManifest, shardedFormat, shardedVersion, shardFileName, stateName } from './sharded-format.ts';
import { loadPieces } from './sharded-load.ts';
import { publishSharded } from './sharded-publish.ts';
import { readManifest, ShardedCheckpoint } from './sharded-reader.ts';
import { writeShard } from './sharded-write.ts';

/**
 * Saves parameters, optimizer state and `state` (plain JSON) to the folder `dir`: one that all hosts see, or each has its own,
 * which then holds what its ranks wrote. Collective.
 * It is written beside `dir` under a temporary name, flushed, and renamed; an older `dir` is replaced. Errors are the same
 * on every rank and name the rank that failed.
 */
export async function saveShardedCheckpoint(
  dir: string,
  model: ShardedModel,
  optimizer: ShardedOptimizer | undefined,
  state: JsonObject,
): Promise<void> {
  const group = dist.group;
  const what = `saving ${dir}`;
  const { count, isWritten } = model.checkpointFile;
  const path = resolve(dir);
  const owns = await ownsFolder(dirname(path));
  const id = await fromRank0(group, what, () => randomBytes(6).toString('hex'));
  const temporary = `${path}.tmp-${id}`;
  const make = async (): Promise<void> => {
    if (owns) await mkdir(temporary, { recursive: true });
  };
  const remove = async (): Promise<void> => {
    if (owns) await rm(temporary, { recursive: true, force: true });
  };
  const write = async (): Promise<void> => {
    if (isWritten) await writeShard(temporary, id, model, optimizer);
  };
  const publish = async (acts: boolean): Promise<void> => {
    if (!acts) return;
    const manifest: ShardedManifest = {
      format: shardedFormat,
      version: shardedVersion,
      id,
      savedAt: Date.now() / 1000,
      worldSize: group.size,
      shards: count,
      dtypes: savedDtypes(model),
      ties: tiedNames(model.module),
      optimizer: optimizer?.name,
      state,
    };
    await publishSharded(temporary, dir, manifest);
  };
  await onAllRanks(group, what, make, remove);
  await onAllRanks(group, what, write, remove);
  // What rank 0's host has under this name is whole: it comes last.
  const isOther = owns && group.rank !== 0;
  if (group.hosts > 1) await onAllRanks(group, what, () => publish(isOther), remove);
  await onAllRanks(group, what, () => publish(group.rank === 0), remove);
}

export interface LoadShardedOptions {
  /** Bytes read by this rank so far, and in all. */
  onProgress?: ((progress: { bytes: number; totalBytes: number; seconds: number }) => void) | undefined;
}

/**
 * Loads a checkpoint into a wrapped model and its optimizer, straight into the shards of this rank; returns the `state`
 * that was saved. The model must have the same parameters; world size, strategy and wrapping may differ. Collective.
 * Errors are the same on every rank and name the folder. Files that a host lacks are brought there by one that has them.
 */
export async function loadShardedCheckpoint(
  dir: string,
  model: ShardedModel,
  optimizer?: ShardedOptimizer,
  options: LoadShardedOptions = {},
): Promise<JsonObject> {
  const { group } = dist;
  if (group.hosts > 1) {
    const { shards } = await fromRank0(group, 'loading a checkpoint', () => readManifest(dir));
    await completeFolder(dir, [...Array.from({ length: shards }, (_, rank) => shardFileName(rank, shards)), stateName]);
  }
  const checkpoint = await onAllRanks(group, 'loading a checkpoint', () =>
    patiently(() => ShardedCheckpoint.open(dir)),
  );
  try {
    await onAllRanks(group, `loading ${dir}`, () => loadPieces(checkpoint, model, optimizer, options.onProgress));
  } finally {
    checkpoint.close();
  }
  return checkpoint.manifest.state;
}

function savedDtypes(model: ShardedModel): Record<string, DType> {
  const out: Record<string, DType> = {};
  for (const parameter of model.savedParameters()) out[parameter.name] = parameter.checkpointDtype ?? parameter.dtype;
  return out;
}
