// Loads the addon, and types its surface but for the ops (native_ops.ts); the names are those of binding/*.cc.
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { setDefault, settings } from './environment.ts';
import type { Handle, NativeOps } from './native_ops.ts';

export type { Handle, NativeOpSignature } from './native_ops.ts';

type N = number;

/** The place of an absent optional operand. */
export const NONE: Handle = 0;

/** What memory is for, in the order of the numbers in native calls (MemoryKind in cpp/core/storage.h). */
export const memoryKinds = [
  'other',
  'parameter',
  'gradient',
  'optimizer',
  'activation',
  'unshard',
  'staging',
] as const;

export type MemoryKind = (typeof memoryKinds)[number];

export type MemoryByKind = Record<MemoryKind, number>;

/** Memory of this rank's tensors, in bytes. */
export interface NativeMemoryStats {
  /** In use, by kind. */
  current: MemoryByKind;
  /** Highest since the start or the last reset, by kind. */
  peak: MemoryByKind;
  /** In use, all kinds. */
  total: number;
  totalPeak: number;
  /** Held from the system, cached blocks included. */
  reserved: number;
  reservedPeak: number;
  /** Tensors that are not disposed. */
  liveHandles: number;
}

export interface NativeInfo {
  version: string;
  /** Instruction set of the SIMD kernels: `avx512`, `avx2` or `baseline`. */
  isa: string;
  dnnl: string;
  threads: number;
  cuda: boolean;
}

/** A shared library that is looked for at run time. */
export interface NativeLibrary {
  name: string;
  /** Of the file that is loaded; empty: none. */
  path: string;
  version: string;
  /** Why it is not used although a file was found. */
  problem: string;
  /** Every place that did not do, with the reason. */
  tried: string[];
  /** What brings it; empty: unknown. */
  remedy: string;
}

/** A GPU of this host. */
export interface NativeDevice {
  name: string;
  /** The same in every process of the host. */
  id: string;
  capability: string;
  multiprocessors: number;
  /** In bytes. */
  memory: number;
  /** Why this build cannot compute on it; empty when it can. */
  problem: string;
}

export interface NativeAccelerator {
  /** The CUDA backend is compiled in. */
  built: boolean;
  /** Why device `cuda` cannot be used; empty when it can. */
  unavailable: string;
  /** Versions as 13000; 0: none. */
  runtime: number;
  driver: number;
  /** That the kernels were compiled for. */
  architectures: string;
  devices: NativeDevice[];
  libraries: NativeLibrary[];
}

/** `auto`: those for Hopper where they suit and have been found right; `hopper`: without that trial; `mma`: those for all devices. */
export type AttentionKernels = 'auto' | 'mma' | 'hopper';

interface NativeRuntime {
  info(): NativeInfo;
  setNumThreads(threads: number): void;
  streamCreate(name: string, device?: number): number;
  /** Makes ops of the stream's device enqueue on `stream`; returns the previous one. */
  streamSetCurrent(stream: number): number;
  streamSynchronize(stream: number): void;
  streamWaitEvent(stream: number, event: Handle): void;
  eventRecord(stream: number): Handle;
  eventRelease(event: Handle): boolean;
  eventQuery(event: Handle): boolean;
  eventSynchronize(event: Handle): void;
  eventWaitAsync(event: Handle): Promise<void>;
  memoryStats(device?: number): NativeMemoryStats;
  memoryResetPeak(): void;
  memoryTrim(): void;
  /** The most bytes that this process takes from the device; 0 for no limit. */
  cudaSetMemoryLimit(bytes: number): void;
  /** Which kernels attention on the device takes from now on; returns what it was. By default as RANKZERO_ATTENTION says. */
  cudaSetAttention(kernels: AttentionKernels): AttentionKernels;
  /** Whether logits of the head and its loss have the dtype of their operands from now on, or float32; returns what it was. */
  cudaSetNarrowLogits(narrow: boolean): boolean;
  /** Which of cuBLASLt's proposals for a GEMM is taken from now on, 0 to 15; returns what it was. */
  cudaSetGemmProposal(proposal: number): number;
  /**
   * How many of them are timed from now on at the first GEMM of a shape, 1 to 16; returns what it was. 1: none, the first is taken.
   * With more, which one is fastest may be another in each run, and so may be the last bits of results.
   */
  cudaSetGemmTrials(trials: number): number;
  /** A place in a stream of the device, counted from 0, for measurements. */
  cudaTimestamp(stream: number): number;
  /** Of the device's time between two of them. Waits for the later. */
  cudaMilliseconds(from: number, to: number): number;
  cudaForgetTimestamps(): void;
  /** The milliseconds of one copy between pinned memory and the device. */
  cudaPinnedCopy(bytes: number, toDevice: boolean): number;
  /** The compute stream of a device, which opens it: number `index` of the machine's. Throws ERR_CUDA_UNAVAILABLE, saying why. */
  computeStream(device: number, index?: number): number;
  /** Rows of logits that losses on the device have at a time. */
  lossChunkRows(device: number, vocab: number, dim: number, rows: number): number;
  /** Loads the libraries, and does not use the device. */
  acceleratorInfo(): NativeAccelerator;
  /** The module that connects hosts. Loads it. */
  engineInfo(): NativeLibrary;
}

/** What the streams and the JavaScript thread did: rows of numbers, whose columns src/profile/recording.ts names. */
export interface NativeRecording {
  /** Nanoseconds of CLOCK_MONOTONIC; the times in `tasks` and `spans` count from here. */
  startedAt: number;
  names: string[];
  /** By index; `dropped` tasks did not fit. */
  streams: { name: string; dropped: number }[];
  tasks: Float64Array;
  spans: Float64Array;
  droppedSpans: number;
}

interface NativeProfiler {
  /** Records what is enqueued from now on, at most `maxEvents` tasks of each stream. ERR_PROFILE while another is recorded. */
  profileStart(maxEvents: number): void;
  profileStop(): void;
  /** Opens a span of the JavaScript thread; its number. */
  profileBegin(kind: string, label: string): number;
  profileEnd(span: number): void;
  /** Resolves when everything enqueued so far has run, or was skipped after a failure. */
  profileDrain(): Promise<void>;
  /** Blocks until the streams are past what was recorded. */
  profileTake(): NativeRecording;
  profileDiscard(): void;
}

interface NativeTensor {
  /** `device`: cpu 0 (also if left out), cuda 1. */
  tensorEmpty(numel: number, dtype: number, kind: number, device?: number): Handle;
  tensorView(tensor: Handle, offset: number, numel: number): Handle;
  tensorRetain(tensor: Handle): Handle;
  tensorRelease(tensor: Handle): boolean;
  tensorUseCount(tensor: Handle): number;
  tensorWrite(tensor: Handle, bytes: ArrayBufferView | ArrayBuffer): void;
  /** Blocks until the tensor is ready. */
  tensorRead(tensor: Handle, into: ArrayBufferView | ArrayBuffer): void;
  tensorReadAsync(tensor: Handle): Promise<ArrayBuffer>;
}

// Dtypes are the numbers of tensor/dtype.ts, offsets are in bytes. Reads and writes are enqueued on the current stream;
// a file may be closed as soon as they are. Converts between floating dtypes only.
interface NativeFiles {
  fileOpen(path: string): Handle;
  /** Creates or empties a file; `reserve` bytes are allocated at once, so that a full disk is an error here. */
  fileCreate(path: string, reserve?: number): Handle;
  fileSize(file: Handle): number;
  /** The descriptor closes when the last enqueued work on it is done. */
  fileClose(file: Handle): boolean;
  /** Threads for reads of 8 MiB or more: 2 to 4 by cores unless set. */
  fileSetThreads(threads: number): void;
  fileReadBytes(file: Handle, offset: number, length: number): Promise<ArrayBuffer>;
  fileRead(file: Handle, offset: number, dst: Handle, fileDtype: number): void;
  /** Fills `dst` with rows of `rowElements`, which start `rowStride` elements apart in the file. */
  fileReadRows(file: Handle, offset: number, dst: Handle, fileDtype: number, rowElements: N, rowStride: N): void;
  /** Returns the elements that will be written; more than `atMost` is an error and nothing is enqueued. */
  fileWrite(file: Handle, offset: number, src: Handle, fileDtype: number, atMost?: number): number;
  fileWriteBytes(file: Handle, offset: number, bytes: ArrayBufferView | ArrayBuffer): void;
  /** Enqueues an fsync behind all work on the file, of every stream; returns its event. */
  fileSync(file: Handle): Handle;
}

export interface NativeCommOptions {
  rank: number;
  size: number;
  /** Of the rendezvous store, on rank 0. */
  host: string;
  port: number;
  /** Empty when the secret is in `secretFile`. */
  secret: string;
  secretFile: string;
  /** The store listens for this host only. */
  loopback: boolean;
  /** This process may serve the store: rank 0, and local rank 0 of the host that has the address `host`. */
  serves: boolean;
  /** Where ranks of other hosts reach this one; empty for the local address of its connection to the store. */
  address: string;
  /** Of this package: all ranks must have the same. */
  version: string;
  /** Seconds without progress of any rank. */
  timeout: number;
  /** Of this host; '' when all ranks are on one. */
  hostName: string;
  /** Seconds of silence after which a rank or host counts as dead. */
  heartbeatTimeout: number;
}

/** What one rank of a dry run would have sent so far, by collective. The formulas are those of cpp/comm/dry_group.h. */
export type DryWire = Record<
  'broadcast' | 'scatter' | 'allReduce' | 'allGather' | 'reduceScatter' | 'allToAll' | 'send' | 'barrier',
  DryCounts
>;

/** Bytes that are sent within a host, and to other hosts. */
export interface DryCounts {
  calls: number;
  within: number;
  between: number;
}

export interface NativeGroupInfo {
  rank: number;
  size: number;
  ranks: number[];
  backend: string;
  /** Of tensors on devices. */
  deviceBackend: string;
  hosts: number;
  /** The host of each rank. */
  hostOf: number[];
  ranksOnHost: number[];
  canMap: boolean;
  name: string;
}

// A group is a handle. Collectives enqueue on the current stream; reduce operations are sum 0, avg 1, max 2, min 3.
// Only split, barrier and the calls on bytes wait.
interface NativeComm {
  /** Joins a job; the promise gives the world's group. */
  commInit(options: NativeCommOptions): Promise<Handle>;
  /**
   * Begins a dry run in a fresh process, as one rank of a world without peers, whose hosts have `ranksPerHost` each: its group.
   * Ops and collectives are checked and dropped, memory of the host and of a device is counted and does not exist, values read as
   * zeros. For the rest of the process.
   */
  dryRun(rank: number, size: number, ranksPerHost: number): Handle;
  dryWire(): DryWire;
  /** The group of a world of one. */
  commLocal(): Handle;
  /** Waits for what is enqueued, then leaves in good order; rank 0 leaves last. */
  commLeave(): void;
  /** Leaves because of a failure: the other ranks stop. */
  commFail(reason: string): void;
  commPhase(name: string): void;
  commAddBytes(bytes: number): void;
  /** Really frees cached shared memory. Waits for all streams. */
  commTrim(): void;
  /** `linkBytes`: sent to ranks of other hosts so far, challenges of new connections among them. */
  commStats(): { cachedBytes: number; mappings: number; groups: number; linkBytes: number };
  groupInfo(group: Handle): NativeGroupInfo;
  groupRelease(group: Handle): boolean;
  /** 0 for a rank that is not among `ranks`. */
  groupSplit(group: Handle, ranks: number[]): Handle;
  groupAllocate(group: Handle, numel: number, dtype: number, kind: number, populate: boolean): Handle;
  /** Enqueues: makes the pages of shared memory in one go, or takes them out of this process's map (their values stay). */
  tensorPages(tensor: Handle, present: boolean): void;
  /** Memory that all ranks of the group map. Waits until all have it; no pages yet. */
  groupAllocateWhole(group: Handle, numel: number, dtype: number, kind: number): Handle;
  groupBroadcast(group: Handle, tensor: Handle, root: number): void;
  groupScatter(group: Handle, output: Handle, input: Handle, root: number): void;
  groupAllReduce(group: Handle, tensor: Handle, op: number): void;
  groupAllGather(group: Handle, output: Handle, input: Handle): void;
  groupReduceScatter(group: Handle, output: Handle, input: Handle, op: number, accumulate: boolean): void;
  groupAllToAll(group: Handle, output: Handle, input: Handle, sendCounts: readonly N[], recvCounts: readonly N[]): void;
  groupSend(group: Handle, tensor: Handle, to: number): void;
  groupRecv(group: Handle, tensor: Handle, from: number): void;
  groupBarrier(group: Handle): void;
  groupEnqueueBarrier(group: Handle): void;
  groupAllGatherBytes(group: Handle, bytes: Uint8Array): Uint8Array[];
  groupBroadcastBytes(group: Handle, bytes: Uint8Array | undefined, root: number): Uint8Array;
}

export interface NativeAddon extends NativeRuntime, NativeProfiler, NativeTensor, NativeOps, NativeFiles, NativeComm {}

/** Root of the package: the folder that holds `build/` and `prebuilds/`. */
export const packageRoot: string = fileURLToPath(new URL('..', import.meta.url));

// OpenMP reads this when the addon brings it in. Threads that spin while they wait take the cores from the communication
// stream and from other ranks: with two threads on two busy cores a step took seven times as long.
setDefault('OMP_WAIT_POLICY', 'passive');

function load(): NativeAddon {
  const require = createRequire(import.meta.url);
  if (settings.addon) return require(settings.addon) as NativeAddon;
  try {
    return require('node-gyp-build')(packageRoot) as NativeAddon;
  } catch (cause) {
    throw new Error(
      `the rankzero addon does not load: ${(cause as Error).message}\n` +
        'Build it with: npm rebuild rankzero (in a checkout: npm run build:native).\n' +
        'It needs a C++20 compiler, CMake and oneDNN: apt-get install -y g++ cmake libdnnl-dev',
      { cause },
    );
  }
}

export const native: NativeAddon = load();
