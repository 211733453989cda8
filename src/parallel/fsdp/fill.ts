// Filling shards while a model is wrapped: from the recipes of this process, or streamed from rank 0 of the shard group,
// chunk by chunk, so that nobody holds more than its shard and a bounded staging buffer.
import type { ProcessGroup } from '../../distributed/process_group.ts';
import { native } from '../../native.ts';
import type { Parameter } from '../../nn/parameter.ts';
import { type Recipe, TensorRecipe } from '../../nn/recipe.ts';
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
    onStream(load, () => {
      for (let r = 0; r < size; r++) {
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
export function fillFromRank0(unit: FsdpUnit, recipes: UnitRecipes | undefined, ring: StagingRing): void {
  const { shard: group, replicate } = unit.groups;
  const comm = communicationStream();
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
        (target, rank) => fillWindow(unit, recipes!, target, rank * unit.layout.shardNumel + at),
        (staging) => group.scatter(part.handle, staging.handle, 0),
      );
    }
  }
  if (replicate.size > 1) onStream(comm, () => replicate.broadcast(unit.shard.handle, 0));
}
