// An open sharded checkpoint: for each parameter and moment, the pieces that it consists of, over all files. Any range of
// any of them can be read alone, whatever the world size that wrote them. Incomplete or inconsistent folders are refused
// when they are opened.
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { FileFormatError } from '../json.ts';
import { native } from '../native.ts';
import { type DType, dtypeNumber, dtypeSize } from '../tensor/dtype.ts';
import { numelOf, type Tensor } from '../tensor/tensor.ts';
import { openSafetensors, type SafetensorsFile } from './safetensors.ts';
import { usableDType } from './safetensors-header.ts';
import { parseManifest, parsePieces, type ShardedManifest, shardFileName, stateName } from './sharded-format.ts';

interface StoredPiece {
  source: SafetensorsFile;
  dtype: DType;
  byteOffset: number;
  start: number;
  length: number;
  step: number | undefined;
}

/** A whole parameter or moment of a checkpoint. */
export interface StoredTensor {
  readonly shape: readonly number[];
  /** Optimizer steps taken, for moments. */
  readonly step: number | undefined;
  /** In order, without gaps. */
  readonly pieces: readonly StoredPiece[];
}

export class ShardedCheckpoint {
  readonly dir: string;
  readonly manifest: ShardedManifest;
  /** By `<kind>/<parameter>`. */
  readonly tensors: ReadonlyMap<string, StoredTensor>;
  readonly #files: readonly SafetensorsFile[];

  private constructor(dir: string, manifest: ShardedManifest, files: readonly SafetensorsFile[]) {
    this.dir = dir;
    this.manifest = manifest;
    this.#files = files;
    this.tensors = assemble(dir, manifest, files);
  }

  /** Opens a folder; headers only. Errors name the folder and the file: not a checkpoint, unfinished, cut short, mixed up. */
  static async open(dir: string): Promise<ShardedCheckpoint> {
    const manifest = await readManifest(dir);
    const files: SafetensorsFile[] = [];
    try {
      for (let rank = 0; rank < manifest.shards; rank++) {
        files.push(await openSafetensors(join(dir, shardFileName(rank, manifest.shards))));
      }
      return new ShardedCheckpoint(dir, manifest, files);
    } catch (cause) {
      for (const file of files) file.close();
      throw new FileFormatError(dir, `this checkpoint cannot be used: ${(cause as Error).message}`, { cause });
    }
  }

  /** Enqueues: `target` gets elements `start` … of a tensor, cast to its dtype. */
  read(key: string, target: Tensor, start: number): void {
    const end = start + target.numel;
    for (const piece of this.tensors.get(key)!.pieces) {
      const from = Math.max(start, piece.start);
      const to = Math.min(end, piece.start + piece.length);
      if (from >= to) continue;
      using part = target.slice(from - start, [to - from]);
      const offset = piece.byteOffset + (from - piece.start) * dtypeSize(piece.dtype);
      native.fileRead(piece.source.file, offset, part.handle, dtypeNumber(piece.dtype));
    }
  }

  /** May be called as soon as the reads are enqueued. */
  close(): void {
    for (const file of this.#files) file.close();
  }
}

/** state.json of a checkpoint folder. Errors name the folder. */
export async function readManifest(dir: string): Promise<ShardedManifest> {
  let text: string;
  try {
    text = await readFile(join(dir, stateName), 'utf8');
  } catch (cause) {
    const why =
      (cause as NodeJS.ErrnoException).code === 'ENOENT' ? `it has no ${stateName}` : (cause as Error).message;
    throw new FileFormatError(dir, `not a complete checkpoint: ${why}`, { cause });
  }
  return parseManifest(text, dir);
}

function assemble(
  dir: string,
  manifest: ShardedManifest,
  files: readonly SafetensorsFile[],
): ReadonlyMap<string, StoredTensor> {
  const found = new Map<string, { shape: readonly number[]; step: number | undefined; pieces: StoredPiece[] }>();
  for (const source of files) {
    for (const [key, { shape, start, step }] of parsePieces(source.metadata, manifest, source.path)) {
      const entry = source.tensors.get(key);
      if (!entry) throw new FileFormatError(source.path, `the piece "${key}" is missing`);
      const piece = { source, dtype: usableDType(entry, key, source.path), byteOffset: entry.byteOffset, start, step };
      const tensor = found.get(key) ?? { shape, step, pieces: [] };
      if (tensor.shape.join() !== shape.join() || tensor.step !== step) {
        throw new FileFormatError(
          source.path,
          `"${key}" is [${shape}] after ${step} steps here, but [${tensor.shape}] after ${tensor.step} in another file`,
        );
      }
      tensor.pieces.push({ ...piece, length: numelOf(entry.shape) });
      found.set(key, tensor);
    }
  }
  for (const [key, { shape, pieces }] of found) {
    pieces.sort((a, b) => a.start - b.start);
    let end = 0;
    for (const { start, length } of pieces) {
      if (start !== end)
        throw new FileFormatError(
          dir,
          `elements ${Math.min(end, start)} … of "${key}" are ${start > end ? 'missing' : 'there twice'}`,
        );
      end += length;
    }
    if (end !== numelOf(shape)) throw new FileFormatError(dir, `"${key}" of shape [${shape}] has ${end} elements`);
  }
  return found;
}
