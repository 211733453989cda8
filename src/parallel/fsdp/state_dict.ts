// The three state dicts of FSDP: FULL (Hugging Face names and shapes), SHARDED (pieces that any world size can read back),
// LOCAL (this rank's flat shards; the same world size and wrapping only).
import type { Module } from '../../nn/module.ts';
import { copyOn, type Parameter } from '../../nn/parameter.ts';
import type { Block } from '../../nn/split.ts';
import type { Shape } from '../../tensor/tensor.ts';
import { Tensor } from '../../tensor/tensor.ts';
import { gatherParts, gatherPartsToFirst } from '../tensor/merge.ts';
import type { FsdpUnit, UnitGroups } from './unit.ts';

export interface FullStateDictOptions {
  /** Others get an empty map. Default false. */
  rank0Only?: boolean | undefined;
  /** Accepted for likeness: the tensors are in host memory in any case. */
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

/** Pieces by parameter name; a parameter of which this rank holds nothing is absent. */
export type ShardedStateDict = Map<string, ShardedTensor>;

/** Flat shards by unit name ('' is the root). */
export type LocalStateDict = Map<string, Tensor>;

/** Gathers unit by unit. Tied parameters appear under each of their names, as one tensor. Collective. */
export function fullStateDict(
  root: Module,
  units: readonly FsdpUnit[],
  { shard, replicate, tensor }: UnitGroups,
  options: FullStateDictOptions,
): Map<string, Tensor> {
  const translate = tensor !== undefined && options.translateOnSave !== false;
  const isFirst = shard.rank === 0 && replicate.rank === 0 && (!translate || tensor.rank === 0);
  const wanted = !options.rank0Only || isFirst;
  const values = new Map<Parameter, Tensor>();
  for (const unit of units) {
    using full = unit.gatherValues();
    for (const { parameter, offset } of unit.layout.spans) {
      if (!wanted && !translate) continue;
      using view = full.slice(offset, parameter.shape);
      if (translate && parameter.split) {
        if (!options.rank0Only) values.set(parameter, gatherParts(view, parameter.split, tensor, 'parameter'));
        else if (shard.rank === 0 && replicate.rank === 0) {
          const whole = gatherPartsToFirst(view, parameter.split, tensor);
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
 * The pieces of `part` (a shard-sized tensor of each unit) by parameter name. Of what several tensor-parallel ranks hold,
 * the first has the piece; padding is left out. Views; no communication.
 */
export function piecesOf(units: readonly FsdpUnit[], part: (unit: FsdpUnit) => Tensor | undefined): ShardedStateDict {
  const out: ShardedStateDict = new Map();
  for (const unit of units) {
    const tensor = part(unit);
    if (!tensor) continue;
    const end = unit.shardOffset + tensor.numel;
    for (const { span, start, at, length } of unit.layout.within(unit.shardOffset, end)) {
      const { name, fullShape, split } = span.parameter;
      const isFirst = split?.isPrimary ?? (unit.groups.tensor?.rank ?? 0) === 0;
      const real = split ? Math.min(length, split.realNumel - start) : length;
      if (!isFirst || real <= 0) continue;
      const block = split && split.parts > 1 ? split.block : undefined;
      out.set(name, { shape: fullShape, start, block, values: tensor.slice(at, [real]) });
    }
  }
  return out;
}

export function shardedStateDict(units: readonly FsdpUnit[]): ShardedStateDict {
  return piecesOf(units, (unit) => unit.shard);
}

/** No communication. */
export function localStateDict(units: readonly FsdpUnit[]): LocalStateDict {
  return new Map(units.map((unit) => [unit.name, unit.shard.detach()]));
}
