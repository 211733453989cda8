// An open sharded checkpoint: for each parameter and moment, the pieces that it consists of, over all files. Any range of
// any of them can be read alone, whatever the world size that wrote them. Incomplete or inconsistent folders are refused
// when they are opened.
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { FileFormatError } from '../core/json.ts';
import { native } from '../native.ts';
import type { BlockPiece } from '../nn/placement.ts';
import { type DType, dtypeNumber, dtypeSize } from '../tensor/dtype.ts';
import { numelOf, type Tensor } from '../tensor/tensor.ts';
import { type BlockRange, copies, coverageProblem, type PieceCopy, wholeBlock } from './pieces.ts';
import { openSafetensors, type SafetensorsFile } from './safetensors.ts';
import { usableDType } from './safetensors-header.ts';
import {
  firstKey,
  parseManifest,
  parsePieces,
  type ShardedManifest,
  shardFileName,
  stateName,
} from './sharded-format.ts';

interface StoredPiece extends BlockRange {
  readonly source: SafetensorsFile;
  readonly dtype: DType;
  readonly byteOffset: number;
}

/** A whole parameter or moment of a checkpoint. */
export interface StoredTensor {
  readonly shape: readonly number[];
  /** Optimizer steps taken, for moments. */
  readonly step: number | undefined;
  /** Together the whole, each element once. */
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

  /**
   * Enqueues: `target`, in host memory, gets the elements of a tensor that `wanted` says, cast to its dtype. What is behind them
   * is padding, and zero.
   */
  read(key: string, target: Tensor, wanted: Iterable<BlockPiece>): void {
    const { shape, pieces } = this.tensors.get(key)!;
    let filled = 0;
    for (const { block, start: from, at, length } of wanted) {
      using run = target.slice(at, [length]);
      for (const piece of pieces)
        for (const copy of copies({ block, start: from, length }, piece, shape)) readCopy(piece, run, copy);
      filled = at + length;
    }
    if (filled === target.numel) return;
    using padding = target.slice(filled, [target.numel - filled]);
    native.fill(padding.handle, 0);
  }

  /** The optimizer whose state was saved; undefined where none was. */
  get optimizer(): string | undefined {
    if (this.manifest.optimizer !== undefined) return this.manifest.optimizer;
    // Earlier checkpoints do not say it.
    return [...this.tensors.keys()].some((key) => key.startsWith('exp_avg/')) ? 'AdamW' : undefined;
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

function readCopy(piece: StoredPiece, target: Tensor, copy: PieceCopy): void {
  const { rows, length, fromStride, toStride } = copy;
  const { file } = piece.source;
  const dtype = dtypeNumber(piece.dtype);
  const offset = (row: number): number => piece.byteOffset + (copy.from + row * fromStride) * dtypeSize(piece.dtype);
  if (rows === 1 || toStride === length) {
    using part = target.slice(copy.to, [rows * length]);
    if (rows === 1) native.fileRead(file, offset(0), part.handle, dtype);
    else native.fileReadRows(file, offset(0), part.handle, dtype, length, fromStride);
    return;
  }
  for (let row = 0; row < rows; row++) {
    using run = target.slice(copy.to + row * toStride, [length]);
    native.fileRead(file, offset(row), run.handle, dtype);
  }
}

function assemble(
  dir: string,
  manifest: ShardedManifest,
  files: readonly SafetensorsFile[],
): ReadonlyMap<string, StoredTensor> {
  const found = new Map<string, { shape: readonly number[]; step: number | undefined; pieces: StoredPiece[] }>();
  for (const source of files) {
    for (const [key, { shape, start, step, block = wholeBlock(shape) }] of parsePieces(
      source.metadata,
      manifest,
      source.path,
    )) {
      const entry = source.tensors.get(key);
      if (!entry) throw new FileFormatError(source.path, `the piece "${key}" is missing`);
      const dtype = usableDType(entry, key, source.path);
      const tensor = found.get(firstKey(key)) ?? { shape, step, pieces: [] };
      if (tensor.shape.join() !== shape.join() || tensor.step !== step) {
        throw new FileFormatError(
          source.path,
          `"${key}" is [${shape}] after ${step} steps here, but [${tensor.shape}] after ${tensor.step} in another file`,
        );
      }
      const { byteOffset } = entry;
      tensor.pieces.push({ source, dtype, byteOffset, block, start, length: numelOf(entry.shape) });
      found.set(firstKey(key), tensor);
    }
  }
  for (const [key, { shape, pieces }] of found) {
    const problem = coverageProblem(pieces, shape);
    if (problem) throw new FileFormatError(dir, `"${key}" of shape [${shape}] is not whole: ${problem}`);
  }
  return found;
}
