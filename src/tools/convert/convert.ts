// From one way of storing a model to another, in one process and in little memory: Hugging Face folders, and sharded
// checkpoints divided over any number of tensor-parallel ranks and shards.
import { randomBytes } from 'node:crypto';
import { mkdir, rm } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { SafetensorsWriter } from '../../checkpoint/safetensors.ts';
import { openPretrained as openPretrainedWriter } from '../../checkpoint/save_pretrained.ts';
import {
  type PieceInfo,
  pieceKey,
  shardedFormat,
  shardedVersion,
  shardFileName,
} from '../../checkpoint/sharded-format.ts';
import { publishSharded } from '../../checkpoint/sharded-publish.ts';
import { familyOf } from '../../models/auto.ts';
import { Placement } from '../../nn/placement.ts';
import { placementsOf } from '../../parallel/tensor/placements.ts';
import { dtypeSize } from '../../tensor/dtype.ts';
import { numelOf, Tensor } from '../../tensor/tensor.ts';
import { openSource, type Source, type StoredValues } from './source.ts';

export interface ConvertOptions {
  /** A Hugging Face folder, or a sharded checkpoint (finetune's `checkpoint-N`, saveShardedCheckpoint). */
  source: string;
  out: string;
  /** Config and tokenizer of a sharded checkpoint. Default: the model that its run names. */
  model?: string | undefined;
  /** Writes a sharded checkpoint, divided over so many tensor-parallel ranks. Without it and `shards`: a Hugging Face folder. */
  tensorParallelDegree?: number | undefined;
  /** Shards of each tensor-parallel part. */
  shards?: number | undefined;
  /** Folder of an adapter (PEFT's format) that is merged into a Hugging Face folder; the result needs no adapter. */
  mergeAdapter?: string | undefined;
  onProgress?: ((progress: { bytes: number; totalBytes: number }) => void) | undefined;
}

export interface ConvertReport {
  kind: 'pretrained' | 'sharded';
  out: string;
  tensors: number;
  /** Written. */
  bytes: number;
}

// Elements in memory at a time.
const chunk = 4 << 20;

/** Converts a checkpoint. `out` appears when it is complete. Errors name the file, or the numbers that do not divide. */
export async function convertCheckpoint(options: ConvertOptions): Promise<ConvertReport> {
  const { source: path, out, model, tensorParallelDegree, shards } = options;
  if (resolve(path) === resolve(out)) throw new Error(`convert: the source and the result are the same folder, ${out}`);
  const source = await openSource(path, model, options.mergeAdapter);
  try {
    const divides = tensorParallelDegree !== undefined || shards !== undefined;
    return await (divides ? writeSharded(source, options) : writePretrained(source, options));
  } finally {
    source.close();
  }
}

/** Elements [from, to) of a part. */
interface Piece {
  values: StoredValues;
  placement: Placement;
  from: number;
  to: number;
}

/** Copies a piece chunk by chunk; resolves when the file has it. */
async function copy(
  { values, placement, from, to }: Piece,
  write: (part: Tensor, offset: number) => void | Promise<void>,
  drain: () => Promise<void>,
  advance: (bytes: number) => void,
): Promise<void> {
  for (let at = from; at < to; at += chunk) {
    using part = Tensor.empty([Math.min(chunk, to - at)], values.dtype, 'staging');
    values.read(part, at, placement);
    await write(part, at - from);
    await drain();
    advance(part.numel * dtypeSize(values.dtype));
  }
}

function progressOf(options: ConvertOptions, totalBytes: number): { advance(bytes: number): void; bytes: number } {
  const state = {
    bytes: 0,
    advance(bytes: number): void {
      state.bytes += bytes;
      options.onProgress?.({ bytes: state.bytes, totalBytes });
    },
  };
  return state;
}

async function writePretrained(source: Source, options: ConvertOptions): Promise<ConvertReport> {
  const { out } = options;
  const tensors = source.parameters.map((values) => ({
    name: values.name,
    shape: values.shape,
    dtype: source.dtypes[values.name] ?? values.dtype,
  }));
  const total = source.parameters.reduce((sum, { shape, dtype }) => sum + numelOf(shape) * dtypeSize(dtype), 0);
  const progress = progressOf(options, total);
  const writer = await openPretrainedWriter(
    out,
    { configText: source.model.configText, source: source.companions },
    tensors,
  );
  try {
    for (const values of source.parameters) {
      const piece = { values, placement: new Placement(values.shape), from: 0, to: numelOf(values.shape) };
      await copy(
        piece,
        (part, offset) => writer.write(values.name, part, offset),
        () => writer.drain(),
        progress.advance,
      );
    }
    await writer.finish();
  } catch (error) {
    await writer.abort();
    throw error;
  }
  return { kind: 'pretrained', out, tensors: tensors.length, bytes: progress.bytes };
}

async function writeSharded(source: Source, options: ConvertOptions): Promise<ConvertReport> {
  const { out, tensorParallelDegree: tp = 1, shards = 1 } = options;
  const { config } = source.model;
  const plan = familyOf(config).parallelPlan;
  if (tp > 1 && !plan) throw new Error(`convert: model_type "${config.modelType}" has no parallel plan`);
  const placements = Array.from({ length: tp }, (_, rank) =>
    tp === 1 ? undefined : placementsOf(source.model, plan!, { axis: 'tensor', size: tp, rank }),
  );
  const { optimizer } = source;
  if (optimizer !== undefined && optimizer !== 'AdamW')
    throw new Error(
      `convert: the checkpoint has the optimizer state of ${optimizer}, and only AdamW's is divided anew without a run; resume it at the number of ranks that is wanted, or convert it to a Hugging Face folder`,
    );
  const files = tp * shards;
  const id = randomBytes(6).toString('hex');
  const temporary = `${resolve(out)}.tmp-${id}`;
  const all = [...source.parameters, ...source.expAvg, ...source.expAvgSq];
  const total = all.reduce((sum, { shape, dtype }) => sum + numelOf(shape) * dtypeSize(dtype), 0);
  const progress = progressOf(options, total);
  await mkdir(temporary, { recursive: true });
  try {
    for (let file = 0; file < files; file++) {
      const [shard, rank] = [Math.floor(file / tp), file % tp];
      await writeFile(
        join(temporary, shardFileName(file, files)),
        id,
        piecesOf(source, placements[rank], shard, shards),
        progress,
      );
    }
    await publishSharded(temporary, out, {
      format: shardedFormat,
      version: shardedVersion,
      id,
      savedAt: Date.now() / 1000,
      worldSize: files,
      shards: files,
      dtypes: source.dtypes,
      ties: source.ties,
      optimizer,
      state: source.state,
    });
  } catch (error) {
    await rm(temporary, { recursive: true, force: true });
    throw error;
  }
  return { kind: 'sharded', out, tensors: source.parameters.length, bytes: progress.bytes };
}

/** What one file holds: of every parameter and moment, one shard of one part. */
function piecesOf(
  source: Source,
  placements: ReadonlyMap<string, Placement> | undefined,
  shard: number,
  shards: number,
): Map<string, { piece: Piece; info: PieceInfo }> {
  const pieces = new Map<string, { piece: Piece; info: PieceInfo }>();
  const kinds: [string, StoredValues[]][] = [
    ['parameter', source.parameters],
    ['exp_avg', source.expAvg],
    ['exp_avg_sq', source.expAvgSq],
  ];
  for (const [kind, list] of kinds) {
    for (const values of list) {
      const placement = placements?.get(values.name) ?? new Placement(values.shape);
      if (!placement.isFirst) continue;
      const { realNumel, isWhole } = placement;
      const from = Math.floor((realNumel * shard) / shards);
      const to = Math.floor((realNumel * (shard + 1)) / shards);
      for (const [i, { block, start, at, length }] of [...placement.pieces(from, to - from)].entries()) {
        pieces.set(pieceKey(kind, values.name, i), {
          piece: { values, placement, from: from + at, to: from + at + length },
          info: { shape: values.shape, start, block: isWhole ? undefined : block, step: values.step },
        });
      }
    }
  }
  return pieces;
}

async function writeFile(
  path: string,
  id: string,
  pieces: ReturnType<typeof piecesOf>,
  progress: { advance(bytes: number): void },
): Promise<void> {
  const planned = [...pieces].map(([name, { piece }]) => ({
    name,
    dtype: piece.values.dtype,
    shape: [piece.to - piece.from],
  }));
  const infos = Object.fromEntries([...pieces].map(([name, { info }]) => [name, info]));
  const writer = SafetensorsWriter.create(path, planned, { format: shardedFormat, id, pieces: JSON.stringify(infos) });
  try {
    for (const [name, { piece }] of pieces) {
      await copy(
        piece,
        (part, offset) => writer.write(name, part.handle, offset),
        () => writer.drain(),
        progress.advance,
      );
    }
    await writer.finish();
  } catch (error) {
    await writer.abort();
    throw error;
  }
}
