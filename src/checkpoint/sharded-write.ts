// This rank's file of a sharded checkpoint: views of its shards, written as they are.
import { join } from 'node:path';
import type { Module } from '../nn/module.ts';
import type { SliceRange } from '../nn/trainable_slice.ts';
import { HostParts } from '../tensor/host_parts.ts';
import type { Tensor } from '../tensor/tensor.ts';
import { SafetensorsWriter } from './safetensors.ts';
import type { ShardedModel, ShardedOptimizer } from './sharded_state.ts';
import { type PieceInfo, pieceKey, shardedFormat, shardFileName } from './sharded-format.ts';

interface Piece {
  key: string;
  info: PieceInfo;
  /** (length); a view. */
  values: Tensor;
}

/** Writes the pieces of this rank of the shard group; resolves when they are on the disk. */
export async function writeShard(
  dir: string,
  id: string,
  model: ShardedModel,
  optimizer: ShardedOptimizer | undefined,
): Promise<void> {
  const { index, count } = model.checkpointFile;
  const pieces = [...ownPieces(model, optimizer)];
  try {
    const path = join(dir, shardFileName(index, count));
    const planned = pieces.map(({ key, values }) => ({ name: key, dtype: values.dtype, shape: [values.numel] }));
    const infos = Object.fromEntries(pieces.map(({ key, info }) => [key, info]));
    const writer = SafetensorsWriter.create(path, planned, {
      format: shardedFormat,
      id,
      pieces: JSON.stringify(infos),
    });
    using parts = new HostParts();
    try {
      for (const { key, values } of pieces) await parts.write(values, (part, at) => writer.write(key, part.handle, at));
      await writer.finish();
    } catch (error) {
      await writer.abort();
      throw error;
    }
  } finally {
    for (const { values } of pieces) values.dispose();
  }
}

function* ownPieces(model: ShardedModel, optimizer: ShardedOptimizer | undefined): Generator<Piece> {
  const isFirst = model.checkpointFile.index === 0;
  for (const { values, ranges } of model.heldTensors()) yield* piecesOf('parameter', values, ranges);
  if (isFirst) {
    // What FSDP ignores is the same on every rank.
    for (const parameter of model.savedParameters()) {
      if (!parameter.owner) yield whole('parameter', parameter.name, parameter.detach());
    }
    for (const [name, tensor] of persistentBuffers(model.module)) yield whole('buffer', name, tensor.detach());
  }
  for (const { slice, step, tensors } of optimizer?.states() ?? []) {
    const ranges = [...slice.ranges()];
    const isIgnored = ranges.some(({ parameter }) => !parameter.owner);
    if (isIgnored && !isFirst) continue;
    for (const [kind, values] of Object.entries(tensors)) yield* piecesOf(kind, values, ranges, step);
  }
}

/** The pieces of `values`, without padding. Of what several tensor-parallel ranks hold, the first has the piece. */
function* piecesOf(kind: string, values: Tensor, ranges: Iterable<SliceRange>, step?: number): Generator<Piece> {
  for (const { parameter, start, at, length } of ranges) {
    const { name, fullShape: shape, placement } = parameter;
    if (!placement.isFirst) continue;
    for (const [i, piece] of [...placement.pieces(start, length)].entries()) {
      const block = placement.isWhole ? undefined : piece.block;
      const info = { shape, start: piece.start, block, step };
      yield { key: pieceKey(kind, name, i), info, values: values.slice(at + piece.at, [piece.length]) };
    }
  }
}

function whole(kind: string, name: string, values: Tensor): Piece {
  return { key: pieceKey(kind, name), info: { shape: values.shape, start: 0 }, values };
}

/** Persistent buffers by name. */
export function* persistentBuffers(root: Module): Generator<[string, Tensor]> {
  for (const [prefix, module] of root.namedModules()) {
    for (const [name, tensor, persistent] of module.ownBuffers()) {
      if (persistent) yield [prefix ? `${prefix}.${name}` : name, tensor];
    }
  }
}
