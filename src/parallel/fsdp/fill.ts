// Filling shards while a model is wrapped: from the recipes of this process, or streamed from rank 0 of the shard group,
// chunk by chunk, so that nobody holds more than its shard and a bounded staging buffer.
import type { ProcessGroup } from '../../distributed/process_group.ts';
import { native } from '../../native.ts';
import type { Parameter } from '../../nn/parameter.ts';
import type { Recipe } from '../../nn/recipe.ts';
import { dtypeSize, type FloatDType } from '../../tensor/dtype.ts';
import { communicationStream, loadingStream, onStream, order, StreamEvent } from '../../tensor/streams.ts';
import type { Tensor } from '../../tensor/tensor.ts';
import { type FsdpUnit, sharedTensor } from './unit.ts';

// Bytes of one staging buffer on rank 0; there are two, whatever the model.
const stagingBytes = 16 << 20;

/** Two buffers that are filled on the loading stream and sent on the communication stream in turn, for a whole wrap. */
export class StagingRing implements Disposable {
  private readonly slots: { buffer: Tensor; sent: StreamEvent | undefined }[] = [];
  private next = 0;
  private readonly group: ProcessGroup;
  private readonly dtype: FloatDType;

  constructor(group: ProcessGroup, dtype: FloatDType) {
    this.group = group;
    this.dtype = dtype;
  }

  /** Elements of one rank's part of a buffer. */
  get partNumel(): number {
    return Math.floor(stagingBytes / dtypeSize(this.dtype) / this.group.size / 16) * 16;
  }

  /**
   * `fill(part, rank)` enqueues the values for each rank on the loading stream; `send(staging)` enqueues the transfer on
   * the communication stream. A buffer is filled again only when its transfer is done.
   */
  pass(length: number, fill: (part: Tensor, rank: number) => void, send: (staging: Tensor) => void): void {
    const [load, comm] = [loadingStream(), communicationStream()];
    const size = this.group.size;
    let slot = this.slots[this.next];
    if (!slot) {
      const buffer = onStream(load, () => sharedTensor(this.group, this.partNumel * size, this.dtype, 'staging'));
      slot = { buffer, sent: undefined };
      this.slots.push(slot);
    }
    this.next = (this.next + 1) % 2;
    slot.sent?.waitOn(load);
    slot.sent?.dispose();
    using used = slot.buffer.slice(0, [length * size]);
    // A dry run has no values to read: one part stands for those of a thousand ranks.
    const filled = this.group.backend === 'dry' ? 1 : size;
    onStream(load, () => {
      for (let r = 0; r < filled; r++) {
        using part = used.slice(r * length, [length]);
        fill(part, r);
      }
    });
    order(load, comm);
    onStream(comm, () => send(used));
    slot.sent = new StreamEvent(comm);
  }

  [Symbol.dispose](): void {
    for (const { buffer, sent } of this.slots) {
      buffer.dispose();
      sent?.dispose();
    }
  }
}

/** Recipes of a unit's parameters, taken before the unit takes them over. */
export type UnitRecipes = ReadonlyMap<Parameter, Recipe>;

/**
 * Enqueues on the current stream: `target` gets elements [begin, …) of the unit's flat buffer, as this rank holds it or,
 * with `tensorRank`, as that rank of the tensor-parallel group does.
 */
function fillWindow(unit: FsdpUnit, recipes: UnitRecipes, target: Tensor, begin: number, tensorRank?: number): void {
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

/** Every rank reads its own slice of its own recipes. */
export function fillLocally(unit: FsdpUnit, recipes: UnitRecipes): void {
  order(communicationStream(), loadingStream()); // the shard's home
  onStream(loadingStream(), () => fillWindow(unit, recipes, unit.shard, unit.shardOffset));
  order(loadingStream(), communicationStream());
}

/**
 * Rank 0 of `group` reads and scatters; each rank receives its slice straight into its shard. `group` is the shard group,
 * or shard × tensor-parallel ranks where rank 0 alone holds the weights: then each gets its slice of its part. With
 * replicas, those of global rank 0 receive first, then each of them broadcasts to its replicas. Collective; enqueues.
 */
export function fillFromRank0(
  unit: FsdpUnit,
  recipes: UnitRecipes | undefined,
  ring: StagingRing,
  group: ProcessGroup,
): void {
  const { shard, replicate } = unit.groups;
  const comm = communicationStream();
  const parts = group.size / shard.size;
  if (replicate.rank === 0) {
    const step = ring.partNumel;
    for (let at = 0; at < unit.shard.numel; at += step) {
      const length = Math.min(step, unit.shard.numel - at);
      using part = unit.shard.slice(at, [length]);
      if (group.rank !== 0) {
        onStream(comm, () => group.scatter(part.handle, undefined, 0));
        continue;
      }
      ring.pass(
        length,
        (target, rank) => {
          const begin = Math.floor(rank / parts) * unit.layout.shardNumel + at;
          fillWindow(unit, recipes!, target, begin, parts > 1 ? rank % parts : undefined);
        },
        (staging) => group.scatter(part.handle, staging.handle, 0),
      );
    }
  }
  if (replicate.size > 1) onStream(comm, () => replicate.broadcast(unit.shard.handle, 0));
}
