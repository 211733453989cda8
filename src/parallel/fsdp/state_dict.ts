// The three state dicts of FSDP: FULL (Hugging Face names and shapes), SHARDED (pieces that any world size can read back),
// LOCAL (this rank's flat shards; the same world size and wrapping only).
import type { Module } from '../../nn/module.ts';
import { copyOn, type Parameter, quantizedProblem } from '../../nn/parameter.ts';
import type { Block } from '../../nn/placement.ts';
import type { Shape } from '../../tensor/tensor.ts';
import { Tensor } from '../../tensor/tensor.ts';
import { gatherParts, gatherPartsToFirst } from '../tensor/merge.ts';
import type { ShardBucket } from './bucket.ts';
import type { ShardGroups } from './groups.ts';
import type { FsdpUnit } from './unit.ts';

export interface FullStateDictOptions {
  /** Others get an empty map. Default false. */
  rank0Only?: boolean | undefined;
  /** Accepted for compatibility: the tensors are in host memory in any case. */
  offloadToCpu?: boolean | undefined;
  /** Default true: whole parameters, as in the checkpoint. False: this rank's part of each, with tensor parallelism. */
  translateOnSave?: boolean | undefined;
}

/** The elements of one parameter that a rank holds. */
export interface ShardedTensor {
  /** Shape of the whole parameter. */
  shape: Shape;
  /** First element of the flattened parameter (or block of it) that `values` holds. */
  start: number;
  /** Rows and columns of the whole that this rank has under tensor parallelism; absent: all. */
  block?: Block | undefined;
  /** (length) in the master dtype; a view of the shard, not a copy. */
  values: Tensor;
}

/** Pieces by parameter name; a parameter of which this rank holds nothing is absent, one of several segments has more: `name#1`. */
export type ShardedStateDict = Map<string, ShardedTensor>;

/** Flat shards by unit name ('' is the root); a unit of several dtypes, or partly frozen, has more: `name#1`. */
export type LocalStateDict = Map<string, Tensor>;

/** Gathers unit by unit. Tied parameters appear under each of their names, as one tensor. Collective. */
export function fullStateDict(
  root: Module,
  units: readonly FsdpUnit[],
  { shard, replicate, tensor }: ShardGroups,
  options: FullStateDictOptions,
): Map<string, Tensor> {
  const translate = tensor !== undefined && options.translateOnSave !== false;
  const isFirst = shard.rank === 0 && replicate.rank === 0 && (!translate || tensor.rank === 0);
  const wanted = !options.rank0Only || isFirst;
  const values = new Map<Parameter, Tensor>();
  const buckets = units.flatMap((unit) => unit.buckets);
  refuseQuantized(buckets, 'a full state dict cannot have it');
  for (const bucket of buckets) {
    using full = bucket.gatherValues();
    for (const { parameter, offset } of bucket.layout.spans) {
      if (!wanted && !translate) continue;
      using view = full.slice(offset, parameter.shape);
      if (translate) {
        if (!options.rank0Only) values.set(parameter, gatherParts(view, parameter.placement, tensor, 'parameter'));
        else if (shard.rank === 0 && replicate.rank === 0) {
          const whole = gatherPartsToFirst(view, parameter.placement, tensor);
          if (whole) values.set(parameter, whole);
        }
      } else if (wanted) {
        const copy = Tensor.empty(parameter.shape, view.dtype, 'parameter');
        copy.copyFrom(view);
        values.set(parameter, copy);
      }
    }
  }
  const out = new Map<string, Tensor>();
  if (!wanted) return out;
  for (const [name, parameter] of root.namedParameters({ removeDuplicate: false })) {
    out.set(name, values.get(parameter) ?? onHost(parameter));
  }
  return out;
}

function onHost(parameter: Parameter): Tensor {
  return parameter.device === 'cuda' ? copyOn('cpu', parameter, 'parameter') : parameter.detach();
}

/**
 * This rank's pieces by parameter name. Of what several tensor-parallel ranks hold, the first has the piece; padding is left out.
 * Views; no communication.
 */
export function shardedStateDict(units: readonly FsdpUnit[]): ShardedStateDict {
  const out: ShardedStateDict = new Map();
  refuseQuantized(
    units.flatMap((unit) => unit.buckets),
    'a sharded state dict cannot have it',
  );
  for (const bucket of units.flatMap((unit) => unit.buckets)) {
    for (const { parameter, start, at, length } of bucket.ranges()) {
      const { name, placement, fullShape } = parameter;
      if (!placement.isFirst) continue;
      for (const [i, piece] of [...placement.pieces(start, length)].entries()) {
        const block = placement.isWhole ? undefined : piece.block;
        const values = bucket.shard.slice(at + piece.at, [piece.length]);
        out.set(i === 0 ? name : `${name}#${i}`, { shape: fullShape, start: piece.start, block, values });
      }
    }
  }
  return out;
}

/** Views of this rank's shards. No communication. */
export function localStateDict(units: readonly FsdpUnit[]): LocalStateDict {
  return new Map(named(units).map(([name, { shard }]) => [name, shard.detach()]));
}

/** Writes shards back where localStateDict took them from. */
export function loadLocalStateDict(units: readonly FsdpUnit[], local: LocalStateDict): void {
  const own = named(units);
  const problems: string[] = [];
  for (const [name, { shard }] of own) {
    const given = local.get(name);
    if (!given) problems.push(`the shard of ${name || 'the root'} is missing`);
    else if (given.numel !== shard.numel || given.dtype !== shard.dtype)
      problems.push(
        `the shard of ${name || 'the root'} has ${given.numel} elements of ${given.dtype}, but ${shard.numel} of ${shard.dtype} are wanted`,
      );
  }
  const known = new Set(own.map(([name]) => name));
  for (const name of local.keys()) if (!known.has(name)) problems.push(`there is no unit ${name || 'of the root'}`);
  if (problems.length > 0)
    throw new Error(
      `loadLocalStateDict: ${problems.join('; ')}. A local state dict fits the model, wrapping and world size that it came from; a SHARDED one fits others`,
    );
  for (const [name, bucket] of own) {
    bucket.beginWrite();
    bucket.shard.copyFrom(local.get(name)!);
    bucket.markShardWritten();
  }
}

/** Throws for what is quantised, by its name. */
export function refuseQuantized(buckets: readonly ShardBucket[], what: string): void {
  for (const { layout } of buckets)
    for (const { parameter } of layout.spans)
      if (parameter.quantized) throw new Error(quantizedProblem(parameter.name, what));
}

/** Buckets by the name of their unit; further ones of a unit are numbered. */
function named(units: readonly FsdpUnit[]): [string, ShardBucket][] {
  return units.flatMap(({ name, buckets }) =>
    buckets.map((bucket, i): [string, ShardBucket] => [i === 0 ? name : `${name}#${i}`, bucket]),
  );
}
