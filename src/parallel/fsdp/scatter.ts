// Filling shards that peers cannot map: rank 0 reads slices into a bounded ring of staging buffers on the host and scatters
// them, chunk by chunk, so that nobody holds more than its shard and the ring. On devices each rank copies its own part up.
import type { ProcessGroup } from '../../distributed/process_group.ts';
import { type DType, dtypeNumber, dtypeSize } from '../../tensor/dtype.ts';
import {
  communicationStream,
  hostCommunicationStream,
  loadingStream,
  onStream,
  order,
  orderBehindComputing,
  StreamEvent,
} from '../../tensor/streams.ts';
import { memoryKindNumber, Tensor } from '../../tensor/tensor.ts';
import type { ShardBucket } from './bucket.ts';
import { type BucketRecipes, broadcastShard, fillWindow } from './fill.ts';

// Bytes of one staging buffer on rank 0; there are two, whatever the model.
const stagingBytes = 16 << 20;

interface Slot {
  buffer: Tensor;
  sent: StreamEvent | undefined;
}

/** Two buffers that are filled on a loading stream and sent on the host's communication stream in turn, for a whole wrap. */
export class StagingRing implements Disposable {
  private readonly slots: Slot[] = [];
  private turn = 0;
  private received: Tensor | undefined;
  private readonly group: ProcessGroup;

  constructor(group: ProcessGroup) {
    this.group = group;
  }

  /** Elements of one rank's part of a buffer. */
  partNumel(dtype: DType): number {
    return Math.floor(stagingBytes / dtypeSize(dtype) / this.group.size / 16) * 16;
  }

  /**
   * `fill(part, i)` enqueues the values of each of `parts` on the loading stream; `send(staging)` enqueues what becomes of
   * them on the host's communication stream. A buffer is filled again only when that is done.
   */
  pass(
    length: number,
    parts: number,
    dtype: DType,
    fill: (part: Tensor, i: number) => void,
    send: (staging: Tensor) => void,
  ): void {
    const [load, comm] = [loadingStream(0), hostCommunicationStream()];
    const slot = this.slotOf(dtype);
    slot.sent?.waitOn(load);
    slot.sent?.dispose();
    using used = slot.buffer.slice(0, [length * parts]);
    onStream(load, () => {
      for (let i = 0; i < parts; i++) {
        using part = used.slice(i * length, [length]);
        fill(part, i);
      }
    });
    order(load, comm);
    onStream(comm, () => send(used));
    slot.sent = new StreamEvent(comm);
  }

  /** `receive` enqueues the values of `target`, a part of a shard, into host memory; on a device they are copied from there. */
  into(target: Tensor, dtype: DType, receive: (host: Tensor) => void): void {
    const comm = hostCommunicationStream();
    if (target.device === 'cpu') {
      onStream(comm, () => receive(target));
      return;
    }
    if (this.received?.dtype !== dtype) {
      this.received?.dispose();
      this.received = onStream(comm, () => Tensor.empty([this.partNumel(dtype)], dtype, 'staging'));
    }
    using host = this.received.slice(0, [target.numel]);
    onStream(comm, () => {
      receive(host);
      onStream(communicationStream(), () => target.copyFrom(host));
    });
  }

  private slotOf(dtype: DType): Slot {
    const i = this.turn;
    this.turn = (this.turn + 1) % 2;
    const numel = this.partNumel(dtype) * this.group.size;
    if (this.slots[i]?.buffer.dtype !== dtype) {
      this.slots[i]?.buffer.dispose();
      const sent = this.slots[i]?.sent;
      const buffer = onStream(loadingStream(0), () => this.allocate(numel, dtype));
      this.slots[i] = { buffer, sent };
    }
    return this.slots[i]!;
  }

  private allocate(numel: number, dtype: DType): Tensor {
    if (this.group.size === 1) return Tensor.empty([numel], dtype, 'staging');
    const handle = this.group.allocateShared(numel, dtypeNumber(dtype), memoryKindNumber('staging'));
    return new Tensor(handle, [numel], dtype);
  }

  [Symbol.dispose](): void {
    this.received?.dispose();
    for (const { buffer, sent } of this.slots) {
      buffer.dispose();
      sent?.dispose();
    }
  }
}

/** The parts of a shard that pass through the ring one after the other. */
function* chunks(shard: Tensor, step: number): Generator<{ at: number; part: Tensor }> {
  for (let at = 0; at < shard.numel; at += step) {
    using part = shard.slice(at, [Math.min(step, shard.numel - at)]);
    yield { at, part };
  }
}

/** Every rank reads its own slice of its own recipes. Enqueues. */
export function stageLocally(bucket: ShardBucket, recipes: BucketRecipes, ring: StagingRing): void {
  const { master } = bucket.dtypes;
  orderBehindComputing(loadingStream(0)); // values of the program
  for (const { at, part } of chunks(bucket.shard, ring.partNumel(master))) {
    ring.pass(
      part.numel,
      1,
      master,
      (target) => fillWindow(bucket, recipes, target, bucket.shardOffset + at),
      (staging) => onStream(communicationStream(), () => part.copyFrom(staging)),
    );
  }
}

/**
 * Rank 0 of `group` reads and scatters; each rank receives its slice. `group` is the shard group, or shard × tensor-parallel
 * ranks where rank 0 alone holds the weights: then each gets its slice of its part. With replicas, those of global rank 0
 * receive first, then each of them broadcasts to its replicas. To other hosts values go in the dtype `wire`. Collective; enqueues.
 */
export function scatterFromRank0(
  bucket: ShardBucket,
  recipes: BucketRecipes | undefined,
  ring: StagingRing,
  group: ProcessGroup,
  wire: DType,
): void {
  const { shard, replicate } = bucket.groups;
  const { master } = bucket.dtypes;
  const parts = group.size / shard.size;
  if (replicate.rank === 0) {
    orderBehindComputing(loadingStream(0)); // values of the program
    for (const { at, part } of chunks(bucket.shard, ring.partNumel(master))) {
      const scatter = (staging?: Tensor): void =>
        ring.into(part, master, (host) => group.scatter(host.handle, staging?.handle, 0));
      if (group.rank !== 0) {
        scatter();
        continue;
      }
      ring.pass(
        part.numel,
        group.size,
        wire,
        (target, rank) => {
          const begin = Math.floor(rank / parts) * bucket.layout.shardNumel + at;
          fillWindow(bucket, recipes!, target, begin, parts > 1 ? rank % parts : undefined);
        },
        scatter,
      );
    }
  }
  if (replicate.size > 1) onStream(communicationStream(), () => broadcastShard(bucket.shard, replicate, wire));
}
