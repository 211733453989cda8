// Filling shards while a model is wrapped: each rank from the recipes of its process, or rank 0 for all of them, straight into
// the memory that they share, so that nobody holds more than its shard.
import type { ProcessGroup } from '../../distributed/process_group.ts';
import { native } from '../../native.ts';
import type { Parameter } from '../../nn/parameter.ts';
import type { Recipe } from '../../nn/recipe.ts';
import {
  communicationStream,
  loadingStream,
  numLoadingStreams,
  onStream,
  order,
  orderBehindComputing,
} from '../../tensor/streams.ts';
import type { Tensor } from '../../tensor/tensor.ts';
import type { FsdpUnit } from './unit.ts';

/** Recipes of a unit's parameters, taken before the unit takes them over. */
export type UnitRecipes = ReadonlyMap<Parameter, Recipe>;

/**
 * Enqueues on the current stream: `target` gets elements [begin, …) of the unit's flat buffer, as this rank holds it or,
 * with `tensorRank`, as that rank of the tensor-parallel group does.
 */
export function fillWindow(
  unit: FsdpUnit,
  recipes: UnitRecipes,
  target: Tensor,
  begin: number,
  tensorRank?: number,
): void {
  const end = begin + target.numel;
  for (const { span, start, at, length } of unit.layout.within(begin, end)) {
    using range = target.slice(at, [length]);
    const recipe = recipes.get(span.parameter)!;
    (tensorRank === undefined ? recipe : (recipe.forRank?.(tensorRank) ?? recipe)).read(range, start);
  }
  for (const [from, to] of unit.layout.gaps(begin, end)) {
    using range = target.slice(from, [to - from]);
    native.fill(range.handle, 0);
  }
}

// Values from files are written through the descriptor of the memory, which makes its pages; others are written by kernels,
// for which the pages are made first.
const fromFiles = (recipes: UnitRecipes): boolean => [...recipes.values()].every((recipe) => recipe.fileBytes > 0);

/** Every rank reads its own slice of its own recipes, on the loading stream of `lane`. Enqueues. */
export function fillLocally(unit: FsdpUnit, recipes: UnitRecipes, lane: number): void {
  onLoading(lane, () => {
    if (!fromFiles(recipes)) native.tensorPages(unit.shard.handle, true);
    fillWindow(unit, recipes, unit.shard, unit.shardOffset);
  });
}

/**
 * Rank 0 of `group` writes every rank's shard where it is: `region` is the unit's memory on all ranks of `group`, which is
 * the shard group, or shard × tensor-parallel ranks where rank 0 alone holds the weights; then it has the flat buffer of each
 * part, one after the other. With replicas, those of global rank 0 receive first, then each of them broadcasts to its
 * replicas. Reads on the loading stream of `lane`. Collective; enqueues.
 */
export function fillFromRank0(
  unit: FsdpUnit,
  recipes: UnitRecipes | undefined,
  region: Tensor,
  group: ProcessGroup,
  lane: number,
): void {
  const { shard, replicate } = unit.groups;
  const comm = communicationStream();
  if (replicate.rank === 0) {
    const parts = group.size / shard.size;
    if (recipes && group.rank === 0) {
      onLoading(lane, () => {
        const made = fromFiles(recipes);
        for (let part = 0; part < parts; part++) {
          using flat = region.slice(part * unit.layout.numel, [unit.layout.numel]);
          if (!made) native.tensorPages(flat.handle, true);
          fillWindow(unit, recipes, flat, 0, parts > 1 ? part : undefined);
          if (!made) forgetOthers(unit, flat, part);
        }
      });
    }
    if (group.size > 1)
      onStream(comm, () => group.scatter(unit.shard.handle, group.rank === 0 ? region.handle : undefined, 0));
  }
  if (replicate.size > 1) onStream(comm, () => replicate.broadcast(unit.shard.handle, 0));
}

// Rank 0 does not keep the pages of shards that are not its own.
function forgetOthers(unit: FsdpUnit, flat: Tensor, part: number): void {
  const { shardNumel, numel } = unit.layout;
  const own = part === 0 ? shardNumel : 0;
  if (own === numel) return;
  using others = flat.slice(own, [numel - own]);
  native.tensorPages(others.handle, false);
}

function onLoading(lane: number, fill: () => void): void {
  const load = loadingStream(lane);
  orderBehindComputing(load); // values of the program
  onStream(load, fill);
  order(load, communicationStream());
}

/** Loading streams wait for the memory that was just allocated on the communication stream. */
export function openLanes(): void {
  for (let lane = 0; lane < numLoadingStreams; lane++) order(communicationStream(), loadingStream(lane));
}
