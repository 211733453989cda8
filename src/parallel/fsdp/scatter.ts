// Filling shards that peers cannot map: rank 0 reads slices into a bounded ring of staging buffers and scatters them, chunk by
// chunk, so that nobody holds more than its shard and the ring.
import type { ProcessGroup } from '../../distributed/process_group.ts';
import { dtypeSize, type FloatDType } from '../../tensor/dtype.ts';
import {
  communicationStream,
  computeStream,
  loadingStream,
  onStream,
  order,
  StreamEvent,
} from '../../tensor/streams.ts';
import type { Tensor } from '../../tensor/tensor.ts';
import { fillWindow, type UnitRecipes } from './fill.ts';
import { sharedTensor } from './memory.ts';
import type { FsdpUnit } from './unit.ts';

// Bytes of one staging buffer on rank 0; there are two, whatever the model.
const stagingBytes = 16 << 20;

interface Slot {
  buffer: Tensor;
  sent: StreamEvent | undefined;
}

/** Two buffers that are filled on a loading stream and sent on the communication stream in turn, for a whole wrap. */
export class StagingRing implements Disposable {
  private readonly slots: Slot[] = [];
  private turn = 0;
  private readonly group: ProcessGroup;

  constructor(group: ProcessGroup) {
    this.group = group;
  }

  /** Elements of one rank's part of a buffer. */
  partNumel(dtype: FloatDType): number {
    return Math.floor(stagingBytes / dtypeSize(dtype) / this.group.size / 16) * 16;
  }

  /**
   * `fill(part, rank)` enqueues the values for each rank on the loading stream; `send(staging)` enqueues the transfer on
   * the communication stream. A buffer is filled again only when its transfer is done.
   */
  pass(
    length: number,
    dtype: FloatDType,
    fill: (part: Tensor, rank: number) => void,
    send: (staging: Tensor) => void,
  ): void {
    const [load, comm] = [loadingStream(0), communicationStream()];
    const { size } = this.group;
    const slot = this.slotOf(dtype);
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

  private slotOf(dtype: FloatDType): Slot {
    const i = this.turn;
    this.turn = (this.turn + 1) % 2;
    const { size } = this.group;
    const numel = this.partNumel(dtype) * size;
    if (this.slots[i]?.buffer.dtype !== dtype) {
      this.slots[i]?.buffer.dispose();
      const sent = this.slots[i]?.sent;
      const buffer = onStream(loadingStream(0), () => sharedTensor(this.group, numel, dtype, 'staging'));
      this.slots[i] = { buffer, sent };
    }
    return this.slots[i]!;
  }

  [Symbol.dispose](): void {
    for (const { buffer, sent } of this.slots) {
      buffer.dispose();
      sent?.dispose();
    }
  }
}

/**
 * Rank 0 of `group` reads and scatters; each rank receives its slice straight into its shard. `group` is the shard group,
 * or shard × tensor-parallel ranks where rank 0 alone holds the weights: then each gets its slice of its part. With
 * replicas, those of global rank 0 receive first, then each of them broadcasts to its replicas. Collective; enqueues.
 */
export function scatterFromRank0(
  unit: FsdpUnit,
  recipes: UnitRecipes | undefined,
  ring: StagingRing,
  group: ProcessGroup,
): void {
  const { shard, replicate } = unit.groups;
  const { master } = unit.dtypes;
  const comm = communicationStream();
  const parts = group.size / shard.size;
  if (replicate.rank === 0) {
    order(computeStream, loadingStream(0)); // values that were initialised there
    const step = ring.partNumel(master);
    for (let at = 0; at < unit.shard.numel; at += step) {
      const length = Math.min(step, unit.shard.numel - at);
      using part = unit.shard.slice(at, [length]);
      if (group.rank !== 0) {
        onStream(comm, () => group.scatter(part.handle, undefined, 0));
        continue;
      }
      ring.pass(
        length,
        master,
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
