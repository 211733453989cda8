// Filling shards while a model is wrapped: each rank from the recipes of its process, or rank 0 for all of them, straight into
// the memory that they share, so that nobody holds more than its shard.
import type { ProcessGroup } from '../../distributed/process_group.ts';
import { native } from '../../native.ts';
import type { Parameter } from '../../nn/parameter.ts';
import type { Recipe } from '../../nn/recipe.ts';
import type { DType } from '../../tensor/dtype.ts';
import {
  communicationStream,
  loadingStream,
  numLoadingStreams,
  onStream,
  order,
  orderBehindComputing,
} from '../../tensor/streams.ts';
import { Tensor } from '../../tensor/tensor.ts';
import type { ShardBucket } from './bucket.ts';

// Elements that are cast at a time on their way to another host.
const castNumel = 4 << 20;

/** Recipes of a bucket's parameters, taken before the bucket takes them over. */
export type BucketRecipes = ReadonlyMap<Parameter, Recipe>;

/**
 * Enqueues on the current stream: `target` gets elements [begin, …) of the bucket's flat buffer, as this rank holds it or,
 * with `tensorRank`, as that rank of the tensor-parallel group does.
 */
export function fillWindow(
  bucket: ShardBucket,
  recipes: BucketRecipes,
  target: Tensor,
  begin: number,
  tensorRank?: number,
): void {
  const end = begin + target.numel;
  for (const { parameter, start, at, length } of bucket.layout.within(begin, end)) {
    using range = target.slice(at, [length]);
    const recipe = recipes.get(parameter)!;
    (tensorRank === undefined ? recipe : (recipe.forRank?.(tensorRank) ?? recipe)).read(range, start);
  }
  for (const [from, to] of bucket.layout.gaps(begin, end)) {
    using range = target.slice(from, [to - from]);
    native.fill(range.handle, 0);
  }
}

// Values from files are written through the descriptor of the memory, which makes its pages; others are written by kernels,
// for which the pages are made first.
const fromFiles = (recipes: BucketRecipes): boolean => [...recipes.values()].every((recipe) => recipe.fileBytes > 0);

/** Every rank reads its own slice of its own recipes, on the loading stream of `lane`. Enqueues. */
export function fillLocally(bucket: ShardBucket, recipes: BucketRecipes, lane: number): void {
  onLoading(lane, () => {
    if (!fromFiles(recipes)) native.tensorPages(bucket.shard.handle, true);
    fillWindow(bucket, recipes, bucket.shard, bucket.shardOffset);
  });
}

/**
 * Rank 0 of `group` writes every rank's shard where it is: `region` is the bucket's memory on all ranks of `group`, which is
 * the shard group, or shard × tensor-parallel ranks where rank 0 alone holds the weights; then it has the flat buffer of each
 * part, one after the other. With replicas, those of global rank 0 receive first, then each of them broadcasts to its
 * replicas, in the dtype `wire` to other hosts. Reads on the loading stream of `lane`. Collective; enqueues.
 */
export function fillFromRank0(
  bucket: ShardBucket,
  recipes: BucketRecipes | undefined,
  region: Tensor,
  group: ProcessGroup,
  lane: number,
  wire: DType,
): void {
  const { shard, replicate } = bucket.groups;
  const comm = communicationStream();
  if (replicate.rank === 0) {
    const parts = group.size / shard.size;
    if (recipes && group.rank === 0) {
      onLoading(lane, () => {
        const made = fromFiles(recipes);
        for (let part = 0; part < parts; part++) {
          using flat = region.slice(part * bucket.layout.numel, [bucket.layout.numel]);
          if (!made) native.tensorPages(flat.handle, true);
          fillWindow(bucket, recipes, flat, 0, parts > 1 ? part : undefined);
          if (!made) forgetOthers(bucket, flat, part);
        }
      });
    }
    if (group.size > 1)
      onStream(comm, () => group.scatter(bucket.shard.handle, group.rank === 0 ? region.handle : undefined, 0));
  }
  if (replicate.size > 1) onStream(comm, () => broadcastShard(bucket.shard, replicate, wire));
}

/** Values between hosts are cast to `wire`, from which they came, piece by piece. On the current stream. */
export function broadcastShard(shard: Tensor, replicate: ProcessGroup, wire: DType): void {
  if (replicate.hosts === 1 || wire === shard.dtype) {
    replicate.broadcast(shard.handle, 0);
    return;
  }
  const step = Math.min(shard.numel, castNumel);
  using cast = Tensor.empty([step], wire, 'staging', shard.device);
  for (let at = 0; at < shard.numel; at += step) {
    using part = shard.slice(at, [Math.min(step, shard.numel - at)]);
    using piece = cast.slice(0, [part.numel]);
    if (replicate.rank === 0) piece.copyFrom(part);
    replicate.broadcast(piece.handle, 0);
    if (replicate.rank !== 0) part.copyFrom(piece);
  }
}

// Rank 0 does not keep the pages of shards that are not its own.
function forgetOthers(bucket: ShardBucket, flat: Tensor, part: number): void {
  const { shardNumel, numel } = bucket.layout;
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
