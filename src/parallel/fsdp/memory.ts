// Where the parameters of a bucket are, and how a rank comes to read all of them: ranks of one host map each other's shards,
// others (devices, several hosts) gather copies.
import type { ProcessGroup } from '../../distributed/process_group.ts';
import { settings } from '../../environment.ts';
import { type DType, dtypeNumber } from '../../tensor/dtype.ts';
import { fuses } from '../../tensor/fusions.ts';
import { communicationStream, computeDevice, numLoadingStreams, onStream } from '../../tensor/streams.ts';
import { type MemoryKind, memoryKindNumber, Tensor } from '../../tensor/tensor.ts';
import type { ShardGroups } from './groups.ts';

/** Everything here is enqueued on the current stream: gather() on that for gathering, the rest on the communication stream. */
export interface BucketMemory {
  /** This rank's elements of the flat buffer, in the master dtype. */
  readonly shard: Tensor;
  /** The same in the compute dtype, to be written together with the shard; undefined where gathering casts. */
  readonly computeShard: Tensor | undefined;
  /** Whether peers read the shard where it is: whoever writes it waits until they have. */
  readonly isMapped: boolean;
  /** Whether gather() has anything to do before all elements can be read. */
  readonly isStale: boolean;
  /** The shard was written, with its compute copy or without. */
  markWritten(withCopy: boolean): void;
  /** All elements in the compute dtype. The caller disposes it. Collective. */
  gather(): Tensor;
  /** A copy of all elements in the master dtype. The caller disposes it. Collective. */
  gatherValues(): Tensor;
}

/** A flat buffer that all ranks of the group map: gathering is agreement, and takes no copy. */
export class MappedMemory implements BucketMemory {
  readonly shard: Tensor;
  readonly computeShard: Tensor | undefined;
  readonly isMapped: boolean;
  isStale = true;
  private isUncast = true;
  private readonly group: ProcessGroup;
  private readonly flat: Tensor;
  private readonly computeFlat: Tensor | undefined;

  /** `flat`: all elements in the master dtype; `computeFlat`: in the compute dtype, where that is another. */
  constructor(group: ProcessGroup, flat: Tensor, computeFlat: Tensor | undefined) {
    this.group = group;
    this.isMapped = group.size > 1;
    this.flat = flat;
    this.computeFlat = computeFlat;
    this.shard = this.ownPart(flat);
    this.computeShard = computeFlat && this.ownPart(computeFlat);
  }

  private ownPart(flat: Tensor): Tensor {
    const numel = flat.numel / this.group.size;
    return flat.slice(this.group.rank * numel, [numel]);
  }

  markWritten(withCopy: boolean): void {
    this.isStale = true;
    // Frozen elements, which an optimizer leaves out, do not change.
    if (!withCopy) this.isUncast = true;
  }

  gather(): Tensor {
    const [full, part] = this.computeFlat ? [this.computeFlat, this.computeShard!] : [this.flat, this.shard];
    if (this.isStale) {
      if (this.computeFlat && this.isUncast) part.copyFrom(this.shard);
      this.group.allGather(full.handle, part.handle);
    }
    this.isStale = false;
    this.isUncast = false;
    return full.detach();
  }

  gatherValues(): Tensor {
    const whole = Tensor.empty([this.flat.numel], this.flat.dtype, 'staging');
    this.group.allGather(this.flat.handle, this.shard.handle);
    whole.copyFrom(this.flat);
    if (this.isMapped) this.group.enqueueBarrier(); // nobody writes before all have copied
    return whole;
  }
}

/** A shard of this rank's own: gathering copies the others' into a buffer that exists until it is disposed. */
export class GatheredMemory implements BucketMemory {
  readonly shard: Tensor;
  readonly computeShard: Tensor | undefined;
  readonly isMapped = false;
  readonly isStale = true;
  private isUncast = true;
  private readonly groups: ShardGroups;
  private readonly compute: DType;

  constructor(groups: ShardGroups, shard: Tensor, compute: DType) {
    this.groups = groups;
    this.shard = shard;
    this.compute = compute;
    if (compute !== shard.dtype && fuses(shard.device, 'casts'))
      this.computeShard = Tensor.empty([shard.numel], compute, 'unshard', shard.device);
  }

  markWritten(withCopy: boolean): void {
    if (!withCopy) this.isUncast = true;
  }

  gather(): Tensor {
    const { gather } = this.groups;
    if (this.isUncast) this.computeShard?.copyFrom(this.shard);
    this.isUncast = false;
    const own = this.computeShard ?? this.shard;
    if (gather.size === 1 && this.compute === own.dtype) return own.detach();
    return this.gatherBy(gather, own, this.compute, 'unshard');
  }

  gatherValues(): Tensor {
    return this.gatherBy(this.groups.shard, this.shard, this.shard.dtype, 'staging');
  }

  private gatherBy(group: ProcessGroup, own: Tensor, dtype: DType, kind: MemoryKind): Tensor {
    const { numel } = own;
    // What one rank of a host receives its neighbours read there.
    const full =
      group.hosts > 1
        ? sharedTensor(group, numel * group.size, dtype, kind)
        : Tensor.empty([numel * group.size], dtype, kind, this.shard.device);
    if (own === this.computeShard) {
      group.allGather(full.handle, own.handle);
      return full;
    }
    using part = full.slice(group.rank * numel, [numel]);
    part.copyFrom(own);
    group.allGather(full.handle, part.handle);
    return full;
  }
}

/** Whether the ranks of `group` can map each other's parameters. RANKZERO_FSDP_GATHER=copy: they do not, as on devices. */
export function canMap(group: ProcessGroup): boolean {
  return group.canMap && computeDevice() === 'cpu' && !settings.gathersByCopy;
}

/** A tensor on this process's device that the ranks of `group` on this host can read; private when no other is there. */
export function sharedTensor(group: ProcessGroup, numel: number, dtype: DType, kind: MemoryKind): Tensor {
  const device = computeDevice();
  if (group.ranksOnHost.length === 1 || device !== 'cpu') return Tensor.empty([numel], dtype, kind, device);
  return new Tensor(group.allocateShared(numel, dtypeNumber(dtype), memoryKindNumber(kind)), [numel], dtype);
}

/**
 * Buffers of the given numbers of elements, the same on every rank of `group`: what one rank writes the others see.
 * Private when the group has one rank. Uninitialised, without pages. Neighbours lie in different pieces of memory, since
 * writes through the descriptor of one piece wait for each other. Collective; blocks.
 */
export function wholeTensors(group: ProcessGroup, numels: readonly number[], dtype: DType, kind: MemoryKind): Tensor[] {
  return onStream(communicationStream(), () => {
    if (group.size === 1) return numels.map((numel) => Tensor.empty([numel], dtype, kind));
    const numPieces = Math.min(numLoadingStreams, numels.length);
    const tensors: Tensor[] = [];
    for (let piece = 0; piece < numPieces; piece++) {
      const total = numels.reduce((sum, numel, i) => sum + (i % numPieces === piece ? numel : 0), 0);
      using whole = new Tensor(group.allocateWhole(total, dtypeNumber(dtype), memoryKindNumber(kind)), [total], dtype);
      let offset = 0;
      for (let i = piece; i < numels.length; i += numPieces) {
        tensors[i] = whole.slice(offset, [numels[i]!]);
        offset += numels[i]!;
      }
    }
    return tensors;
  });
}
