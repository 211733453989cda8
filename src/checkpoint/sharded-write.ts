// This rank's file of a sharded checkpoint: views of its shards, written as they are.
import { join } from 'node:path';
import type { Module } from '../nn/module.ts';
import type { BlockPiece } from '../nn/placement.ts';
import type { SliceRange } from '../nn/trainable_slice.ts';
import { HostParts } from '../tensor/host_parts.ts';
import type { Shape, Tensor } from '../tensor/tensor.ts';
import { sameBlock, wholeBlock } from './pieces.ts';
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
  for (const { values, ranges } of model.heldTensors()) yield* heldPieces(values, ranges);
  if (isFirst) {
    // What FSDP ignores is the same on every rank.
    for (const parameter of model.savedParameters()) {
      if (!parameter.owner) yield whole('parameter', parameter.name, parameter.detach());
    }
    for (const [name, tensor] of persistentBuffers(model.module)) yield whole('buffer', name, tensor.detach());
  }
  for (const { step, tensors } of optimizer?.states() ?? []) {
    for (const state of tensors()) {
      const { kind, parameter, shape, values, saved, isReplicated } = state;
      const isElsewhere = (isReplicated || !parameter.owner) && !isFirst;
      yield* isElsewhere ? [] : piecesOf(kind, parameter.name, shape, values, saved, step);
      values.dispose();
    }
  }
}

/** The pieces of parameters, without padding. Of what several tensor-parallel ranks hold, the first has the piece. */
function* heldPieces(values: Tensor, ranges: Iterable<SliceRange>): Generator<Piece> {
  for (const { parameter, start, at, length } of ranges) {
    const { name, fullShape, placement } = parameter;
    if (!placement.isFirst) continue;
    using held = values.slice(at, [length]);
    yield* piecesOf('parameter', name, fullShape, held, placement.pieces(start, length));
  }
}

/** Views of `values` where pieces of a tensor of `shape` stand in it. */
function* piecesOf(
  kind: string,
  parameter: string,
  shape: Shape,
  values: Tensor,
  pieces: Iterable<BlockPiece>,
  step?: number,
): Generator<Piece> {
  const all = wholeBlock(shape);
  let number = 0;
  for (const { block, start, at, length } of pieces) {
    const info = { shape, start, block: sameBlock(block, all) ? undefined : block, step };
    yield { key: pieceKey(kind, parameter, number++), info, values: values.slice(at, [length]) };
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
