// A group of ranks and its collectives on native tensors. Every rank of a group must make the same calls in the same
// order; a rank in a call is a rank of the group. Collectives enqueue on the current stream and return at once.
import { type Handle, NONE, native } from '../native.ts';

export type ReduceOp = 'sum' | 'avg' | 'max' | 'min';

const reduceOps: readonly ReduceOp[] = ['sum', 'avg', 'max', 'min'];

function reduceNumber(op: ReduceOp): number {
  const number = reduceOps.indexOf(op);
  if (number < 0) throw new TypeError(`a reduce operation is one of ${reduceOps.join(', ')}, not ${op}`);
  return number;
}

/**
 * Mirrors `torch.distributed.ProcessGroup`. Floating dtypes are reduced in float32, over the ranks in order: results are the
 * same bits on every rank. Errors of the arguments throw at once; what goes wrong later is thrown where the stream is waited
 * for: `ERR_PEER` (a rank died or left), `ERR_COLLECTIVE_MISMATCH` (ranks made different calls), `ERR_TIMEOUT`.
 */
export class ProcessGroup {
  /** This rank within the group. */
  readonly rank: number;
  readonly size: number;
  /** World ranks of the members, in the group's order. */
  readonly ranks: readonly number[];
  /** What carries tensors of the host: `shm`, `gloo` between hosts, `local` for a group of one, `dry` in a dry run. */
  readonly backend: string;
  /** Number of hosts that its members are on. */
  readonly hosts: number;
  /** The host of each rank of the group: hosts are numbered in the order of their first ranks. */
  readonly hostOf: readonly number[];
  /** Ranks of the group on this rank's host, itself among them, ascending. */
  readonly ranksOnHost: readonly number[];
  /** All members can map each other's memory of the host, so `allocateWhole` works. Memory of devices is never mapped. */
  readonly canMap: boolean;
  readonly name: string;
  private readonly deviceBackend: string;
  private readonly handle: Handle;

  /** @internal Takes ownership of a native group. */
  constructor(handle: Handle) {
    this.handle = handle;
    const info = native.groupInfo(handle);
    this.rank = info.rank;
    this.size = info.size;
    this.ranks = info.ranks;
    this.backend = info.backend;
    this.deviceBackend = info.deviceBackend;
    this.hosts = info.hosts;
    this.hostOf = info.hostOf;
    this.ranksOnHost = info.ranksOnHost;
    this.canMap = info.canMap;
    this.name = info.name;
  }

  /** What carries tensors on `device`: `backend` on the host; on devices `nccl`, and as the host's for a group of one or a dry run. */
  backendOf(device: 'cpu' | 'cuda'): string {
    return device === 'cpu' ? this.backend : this.deviceBackend;
  }

  /**
   * A tensor in memory that peers read in place: the source of the fast collectives. It belongs to the current stream, where its
   * pages are made at once unless `populate` is false (whoever writes first then pays for them). Uninitialised.
   */
  allocateShared(numel: number, dtype: number, kind: number, populate = true): Handle {
    return native.groupAllocate(this.handle, numel, dtype, kind, populate);
  }

  /**
   * One tensor that all ranks of the group map: what one writes the others read, after a barrier. Uninitialised, without
   * pages. Collective; blocks.
   */
  allocateWhole(numel: number, dtype: number, kind: number): Handle {
    return native.groupAllocateWhole(this.handle, numel, dtype, kind);
  }

  /** Enqueues a barrier on the current stream: what is enqueued behind it runs when every rank has come this far. */
  enqueueBarrier(): void {
    native.groupEnqueueBarrier(this.handle);
  }

  /** Root's values replace everyone's. */
  broadcast(tensor: Handle, root: number): void {
    native.groupBroadcast(this.handle, tensor, root);
  }

  /** Rank r gets part r of root's input, cast to the dtype of `output`. `input` counts at the root only. */
  scatter(output: Handle, input: Handle | undefined, root: number): void {
    native.groupScatter(this.handle, output, input ?? NONE, root);
  }

  /** Reduces in place. `avg` needs a floating dtype. */
  allReduce(tensor: Handle, op: ReduceOp = 'sum'): void {
    native.groupAllReduce(this.handle, tensor, reduceNumber(op));
  }

  /** `output` gets every rank's input in rank order, cast to its dtype. In place when `input` is its part `rank`. */
  allGather(output: Handle, input: Handle): void {
    native.groupAllGather(this.handle, output, input);
  }

  /** `output` gets the reduction of part `rank` of every rank's input; with `accumulate` it is added to what is there. */
  reduceScatter(output: Handle, input: Handle, op: ReduceOp = 'sum', accumulate = false): void {
    native.groupReduceScatter(this.handle, output, input, reduceNumber(op), accumulate);
  }

  /**
   * Rank r gets the next `sendCounts[r]` elements of `input`; `output` gets what all ranks send to this one, in rank order:
   * `recvCounts[r]` elements of rank r. Mirrors `torch.distributed.all_to_all_single` with split sizes. One dtype, no overlap;
   * counts may be 0. Counts that do not add up to their tensor are `ERR_SHAPE` at once. Ranks that do not agree on a count are
   * `ERR_COLLECTIVE_MISMATCH`; on devices nobody sees that, and the call fails or ends at the timeout.
   */
  allToAll(output: Handle, input: Handle, sendCounts: readonly number[], recvCounts: readonly number[]): void {
    native.groupAllToAll(this.handle, output, input, sendCounts, recvCounts);
  }

  /** Sends to rank `to`. Up to 512 kB are buffered; more completes when the receiver has taken it. */
  send(tensor: Handle, to: number): void {
    native.groupSend(this.handle, tensor, to);
  }

  /** Receives what rank `from` sends: same dtype, same number of elements. */
  recv(tensor: Handle, from: number): void {
    native.groupRecv(this.handle, tensor, from);
  }

  /** Blocks until the current stream is done and every rank of the group is here. */
  barrier(): void {
    native.groupBarrier(this.handle);
  }

  /**
   * A group of some ranks of this one. Blocks until those ranks have made the same call; ranks that are not named get
   * `undefined` at once, and need not call.
   */
  split(ranks: readonly number[]): ProcessGroup | undefined {
    const handle = native.groupSplit(this.handle, [...ranks]);
    return handle === NONE ? undefined : new ProcessGroup(handle);
  }

  /** Every rank's bytes, in rank order; sizes may differ. Blocks; for manifests, not for data. */
  allGatherBytes(bytes: Uint8Array): Uint8Array[] {
    return native.groupAllGatherBytes(this.handle, bytes);
  }

  /** Root's bytes. Blocks. */
  broadcastBytes(bytes: Uint8Array | undefined, root: number): Uint8Array {
    return native.groupBroadcastBytes(this.handle, bytes, root);
  }

  /** Releases the group when what is enqueued on it is done. Its tensors stay valid. */
  close(): void {
    native.groupRelease(this.handle);
  }
}
