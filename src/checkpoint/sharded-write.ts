// This rank's file of a sharded checkpoint: views of its shards, written as they are.
import { join } from 'node:path';
import type { Module } from '../nn/module.ts';
import type { AdamW } from '../optim/adamw.ts';
import type { FullyShardedDataParallel } from '../parallel/fsdp/fsdp.ts';
import { piecesOf, type ShardedStateDict } from '../parallel/fsdp/state_dict.ts';
import { writeFromHost } from '../tensor/host_parts.ts';
import type { Tensor } from '../tensor/tensor.ts';
import { SafetensorsWriter } from './safetensors.ts';
import { type PieceInfo, type PieceKind, pieceKey, shardedFormat, shardFileName } from './sharded-format.ts';

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
  fsdp: FullyShardedDataParallel,
  optimizer: AdamW | undefined,
): Promise<void> {
  const { grid } = fsdp.groups;
  const pieces = [...ownPieces(fsdp, optimizer)];
  try {
    const path = join(dir, shardFileName(grid.rank, grid.size));
    const planned = pieces.map(({ key, values }) => ({ name: key, dtype: values.dtype, shape: [values.numel] }));
    const infos = Object.fromEntries(pieces.map(({ key, info }) => [key, info]));
    const writer = SafetensorsWriter.create(path, planned, {
      format: shardedFormat,
      id,
      pieces: JSON.stringify(infos),
    });
    try {
      for (const { key, values } of pieces) writeFromHost(values, (part, at) => writer.write(key, part.handle, at));
      await writer.finish();
    } catch (error) {
      await writer.abort();
      throw error;
    }
  } finally {
    for (const { values } of pieces) values.dispose();
  }
}

function* ownPieces(fsdp: FullyShardedDataParallel, optimizer: AdamW | undefined): Generator<Piece> {
  const isFirst = fsdp.groups.grid.rank === 0;
  yield* named(
    'parameter',
    piecesOf(fsdp.units, (unit) => unit.shard),
  );
  if (isFirst) {
    // What FSDP ignores is the same on every rank.
    for (const parameter of fsdp.parameters()) {
      if (!parameter.owner) yield whole('parameter', parameter.name, parameter.detach());
    }
    for (const [name, tensor] of persistentBuffers(fsdp.module)) yield whole('buffer', name, tensor.detach());
  }
  for (const { unit, parameter, step, expAvg, expAvgSq } of optimizer?.states() ?? []) {
    if (unit) {
      yield* named(
        'exp_avg',
        piecesOf([unit], () => expAvg),
        step,
      );
      yield* named(
        'exp_avg_sq',
        piecesOf([unit], () => expAvgSq),
        step,
      );
    } else if (parameter && isFirst) {
      const { shape, name } = parameter;
      yield whole('exp_avg', name, expAvg.view(shape), step);
      yield whole('exp_avg_sq', name, expAvgSq.view(shape), step);
    }
  }
}

function* named(kind: PieceKind, pieces: ShardedStateDict, step?: number): Generator<Piece> {
  for (const [name, { shape, start, block, values }] of pieces) {
    yield { key: pieceKey(kind, name), info: { shape, start, block, step }, values };
  }
}

function whole(kind: PieceKind, name: string, values: Tensor, step?: number): Piece {
  return { key: pieceKey(kind, name), info: { shape: values.shape, start: 0, step }, values };
}

/** Persistent buffers by name. */
export function* persistentBuffers(root: Module): Generator<[string, Tensor]> {
  for (const [prefix, module] of root.namedModules()) {
    for (const [name, tensor, persistent] of module.ownBuffers()) {
      if (persistent) yield [prefix ? `${prefix}.${name}` : name, tensor];
    }
  }
}
