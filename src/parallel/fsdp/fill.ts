// Filling shards while a model is wrapped: from the recipes of this process, or streamed from rank 0 of the shard group,
// chunk by chunk, so that nobody holds more than its shard and a bounded staging buffer.
import { native } from '../../native.ts';
import type { Parameter } from '../../nn/parameter.ts';
import { type Recipe, TensorRecipe } from '../../nn/recipe.ts';
import type { FloatDType } from '../../tensor/dtype.ts';
import { communicationStream, loadingStream, onStream, order } from '../../tensor/streams.ts';
import type { Tensor } from '../../tensor/tensor.ts';
import { type FsdpUnit, sharedTensor } from './unit.ts';

// Staging on rank 0 is at most two of these (bytes), whatever the model.
const stagingBytes = 16 << 20;

/** Where the values of a parameter come from now. Throws for a parameter on meta. */
export function currentRecipe(parameter: Parameter): Recipe {
  if (parameter.isReal) return new TensorRecipe(parameter.materialize(), parameter.lastWriter);
  if (parameter.recipe) return parameter.recipe;
  throw new Error(
    `FSDP: parameter ${parameter.name} is on meta and nothing gives it values; use syncModuleStates, or a paramInitFn`,
  );
}

/** Recipes of a unit's parameters, taken before the unit takes them over. */
export type UnitRecipes = ReadonlyMap<Parameter, Recipe>;

/** Enqueues on the current stream: `target` gets elements [begin, …) of the unit's flat buffer. */
function fillWindow(unit: FsdpUnit, recipes: UnitRecipes, target: Tensor, begin: number): void {
  const end = begin + target.numel;
  for (const { span, start, at, length } of unit.layout.within(begin, end)) {
    using range = target.slice(at, [length]);
    recipes.get(span.parameter)!.read(range, start);
  }
  for (const [from, to] of unit.layout.gaps(begin, end)) {
    using range = target.slice(from, [to - from]);
    native.fill(range.handle, 0);
  }
}

/** Every rank reads its own slice of its own recipes. */
export function fillLocally(unit: FsdpUnit, recipes: UnitRecipes): void {
  order(communicationStream(), loadingStream()); // the shard's home
  onStream(loadingStream(), () => fillWindow(unit, recipes, unit.shard, unit.shardOffset));
  order(loadingStream(), communicationStream());
}

/**
 * Rank 0 of the shard group reads and scatters; each rank receives its slice straight into its shard. With replicas, the
 * shard group of global rank 0 receives first, then each of its ranks broadcasts to its replicas. Collective; enqueues.
 */
export function fillFromRank0(unit: FsdpUnit, recipes: UnitRecipes | undefined): void {
  const { shard: group, replicate } = unit.groups;
  const comm = communicationStream();
  const dtype: FloatDType = unit.dtypes.master;
  if (replicate.rank === 0) {
    const width = unit.shard.numel * (dtype === 'float32' ? 4 : 2);
    const chunks = Math.max(1, Math.ceil((width * group.size) / stagingBytes));
    const step = Math.max(16, Math.ceil(unit.shard.numel / chunks / 16) * 16);
    for (let at = 0; at < unit.shard.numel; at += step) {
      const length = Math.min(step, unit.shard.numel - at);
      using part = unit.shard.slice(at, [length]);
      if (group.rank !== 0) {
        onStream(comm, () => group.scatter(part.handle, undefined, 0));
        continue;
      }
      const load = loadingStream();
      const staging = onStream(load, () => {
        const buffer = sharedTensor(group, length * group.size, dtype, 'staging');
        for (let r = 0; r < group.size; r++) {
          using slice = buffer.slice(r * length, [length]);
          fillWindow(unit, recipes!, slice, r * unit.layout.shardNumel + at);
        }
        return buffer;
      });
      order(load, comm);
      onStream(comm, () => group.scatter(part.handle, staging.handle, 0));
      staging.dispose();
    }
  }
  if (replicate.size > 1) onStream(comm, () => replicate.broadcast(unit.shard.handle, 0));
}
