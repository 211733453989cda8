// The three state dicts of FSDP: FULL (Hugging Face names and shapes), SHARDED (pieces that any world size can read back),
// LOCAL (this rank's flat shards; the same world size and wrapping only).
import type { Module } from '../../nn/module.ts';
import type { Parameter } from '../../nn/parameter.ts';
import type { Shape } from '../../tensor/tensor.ts';
import { Tensor } from '../../tensor/tensor.ts';
import type { FsdpUnit } from './unit.ts';

export interface FullStateDictOptions {
  /** Others get an empty map. Default false. */
  rank0Only?: boolean | undefined;
  /** Accepted for likeness: on CPU ranks tensors are in host memory anyway. */
  offloadToCpu?: boolean | undefined;
}

/** The elements of one parameter that a rank holds. */
export interface ShardedTensor {
  /** Shape of the whole parameter. */
  shape: Shape;
  /** First element of the flattened parameter that `values` holds. */
  start: number;
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
  options: FullStateDictOptions,
): Map<string, Tensor> {
  const wanted =
    !options.rank0Only || units.every((unit) => unit.groups.shard.rank === 0 && unit.groups.replicate.rank === 0);
  const values = new Map<Parameter, Tensor>();
  for (const unit of units) {
    using full = unit.gather(unit.shard);
    if (!wanted) continue;
    for (const { parameter, offset } of unit.layout.spans) {
      using view = full.slice(offset, parameter.shape);
      const copy = Tensor.empty(parameter.shape, view.dtype, 'parameter');
      copy.copyFrom(view);
      values.set(parameter, copy);
    }
  }
  const out = new Map<string, Tensor>();
  if (!wanted) return out;
  for (const [name, parameter] of root.namedParameters({ removeDuplicate: false })) {
    out.set(name, values.get(parameter) ?? parameter.detach());
  }
  return out;
}

/** The pieces of `parts` (a shard-sized tensor of each unit) by parameter name. Views; no communication. */
export function piecesOf(units: readonly FsdpUnit[], part: (unit: FsdpUnit) => Tensor | undefined): ShardedStateDict {
  const out: ShardedStateDict = new Map();
  for (const unit of units) {
    const tensor = part(unit);
    if (!tensor) continue;
    const end = unit.shardOffset + tensor.numel;
    for (const { span, start, at, length } of unit.layout.within(unit.shardOffset, end)) {
      out.set(span.parameter.name, { shape: span.parameter.shape, start, values: tensor.slice(at, [length]) });
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
