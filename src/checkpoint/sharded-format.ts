// What a sharded checkpoint is on the disk: a folder with one safetensors file for each rank that holds a shard, and
// state.json, written last. A file holds pieces: flat ranges of parameters and of their optimizer state (or of the blocks
// into which tensor parallelism divides them), named
// `<kind>/<parameter>`, with shape, block and start in the file's metadata; kinds are `parameter`, `buffer` and those of the
// optimizer (`exp_avg`), whose shape may be another than the parameter's. The files of one save carry the same id.
import { join } from 'node:path';
import { describe, FileFormatError, isObject, type JsonObject, parseJson } from '../core/json.ts';
import type { Block } from '../nn/placement.ts';
import { type DType, parseDType } from '../tensor/dtype.ts';

export const shardedFormat = 'rankzero.sharded';
export const shardedVersion = 1;
export const stateName = 'state.json';

/** Where a piece belongs; its values are the tensor of the same key. */
export interface PieceInfo {
  /** Of the whole parameter, or of its state. */
  readonly shape: readonly number[];
  /** First element of the flattened parameter, or block. */
  readonly start: number;
  /** Rows and columns of the whole that a tensor-parallel rank holds; absent: all. */
  readonly block?: Block | undefined;
  /** Optimizer steps taken, for the moments. */
  readonly step?: number | undefined;
}

/** state.json. */
export interface ShardedManifest {
  readonly format: typeof shardedFormat;
  readonly version: number;
  /** The same in every file of one save. */
  readonly id: string;
  /** Seconds since 1970. */
  readonly savedAt: number;
  readonly worldSize: number;
  /** Files, one for each rank that holds a shard: of the data-parallel shard group, times tensor-parallel ranks. */
  readonly shards: number;
  /** dtype of each parameter in a Hugging Face folder. */
  readonly dtypes: Readonly<Record<string, DType>>;
  /** [second name, first name] of tied parameters. */
  readonly ties: readonly (readonly [string, string])[];
  /** The optimizer whose state was saved, such as `AdamW`; absent without one, and in checkpoints of earlier versions. */
  readonly optimizer?: string | undefined;
  /** What the program saved beside the weights. */
  readonly state: JsonObject;
}

/** `rank-00000-of-00002.safetensors` */
export function shardFileName(rank: number, shards: number): string {
  const five = (n: number): string => String(n).padStart(5, '0');
  return `rank-${five(rank)}-of-${five(shards)}.safetensors`;
}

/** `number`: of a further piece in one file, where a rank's part consists of several. */
export function pieceKey(kind: string, parameter: string, number = 0): string {
  return number === 0 ? `${kind}/${parameter}` : `${kind}/${parameter}#${number}`;
}

/** The key of the first piece. */
export function firstKey(key: string): string {
  return key.replace(/#\d+$/, '');
}

/** Checks the content of state.json in `dir`. */
export function parseManifest(text: string, dir: string): ShardedManifest {
  const path = join(dir, stateName);
  const json = parseJson(text, path);
  const bad = (problem: string): FileFormatError => new FileFormatError(path, problem);
  if (!isObject(json)) throw bad(`must hold a JSON object, got ${describe(json)}`);
  if (json.format !== shardedFormat) throw bad(`format must be "${shardedFormat}", got ${describe(json.format)}`);
  if (json.version !== shardedVersion) {
    throw bad(`version ${describe(json.version)} of the format is not known; this rankzero reads ${shardedVersion}`);
  }
  const wanted = (key: string, ok: boolean, what: string): void => {
    if (!ok) throw bad(`${key} must be ${what}, got ${describe(json[key])}`);
  };
  wanted('id', typeof json.id === 'string', 'text');
  wanted('savedAt', typeof json.savedAt === 'number', 'a number');
  wanted('shards', Number.isSafeInteger(json.shards) && (json.shards as number) > 0, 'a whole number from 1');
  wanted('worldSize', Number.isSafeInteger(json.worldSize), 'a whole number');
  wanted('state', isObject(json.state), 'an object');
  wanted('optimizer', json.optimizer === undefined || typeof json.optimizer === 'string', 'text');
  wanted('ties', Array.isArray(json.ties), 'an array');
  wanted('dtypes', isObject(json.dtypes), 'an object');
  for (const [name, dtype] of Object.entries(json.dtypes as JsonObject)) {
    if (typeof dtype !== 'string' || !parseDType(dtype)) throw bad(`dtypes: ${name} has ${describe(dtype)}`);
  }
  return json as unknown as ShardedManifest;
}

/** Checks the metadata of one file of a save: pieces by key. */
export function parsePieces(
  metadata: ReadonlyMap<string, string>,
  manifest: Pick<ShardedManifest, 'id'>,
  path: string,
): Map<string, PieceInfo> {
  if (metadata.get('format') !== shardedFormat)
    throw new FileFormatError(path, 'is not a file of a sharded checkpoint');
  if (metadata.get('id') !== manifest.id) {
    throw new FileFormatError(path, `belongs to another save than ${stateName} beside it`);
  }
  const json = parseJson(metadata.get('pieces') ?? '', `${path} (pieces)`);
  if (!isObject(json)) throw new FileFormatError(path, `pieces must be an object, got ${describe(json)}`);
  const isSize = (value: unknown): boolean => Number.isSafeInteger(value) && (value as number) >= 0;
  const isBlock = (value: unknown): boolean =>
    isObject(value) && (['row', 'rows', 'col', 'cols'] as const).every((key) => isSize(value[key]));
  const pieces = new Map<string, PieceInfo>();
  for (const [key, piece] of Object.entries(json)) {
    const ok =
      isObject(piece) &&
      Array.isArray(piece.shape) &&
      piece.shape.every(isSize) &&
      isSize(piece.start) &&
      (piece.step === undefined || isSize(piece.step)) &&
      (piece.block === undefined || isBlock(piece.block));
    if (!ok) throw new FileFormatError(path, `the piece "${key}" has no valid shape and start`);
    pieces.set(key, piece as unknown as PieceInfo);
  }
  return pieces;
}
