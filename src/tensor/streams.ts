// The streams of this process: compute (the default), communication, and loading. An event orders two of them without
// making JavaScript wait.
import { availableParallelism } from 'node:os';
import { processState } from '../core/context.ts';
import { type Handle, native } from '../native.ts';

/** Ops on host memory run here unless onStream says otherwise. */
const hostComputeStream = 0;

interface Streams {
  device: 'cpu' | 'cuda';
  compute: number;
  /** Made when they are first asked for. */
  communication: number | undefined;
  gather: number | undefined;
  hostCommunication: number | undefined;
  tensorParallel: number | undefined;
  files: number | undefined;
  readonly loading: number[];
}

const streams: Streams = processState<Streams>('streams', 'the device of this process, and its streams', {
  device: 'cpu',
  compute: hostComputeStream,
  communication: undefined,
  gather: undefined,
  hostCommunication: undefined,
  tensorParallel: undefined,
  files: undefined,
  loading: [],
});

/** Where models compute and their parameters live: one device a process. */
export function computeDevice(): 'cpu' | 'cuda' {
  return streams.device;
}

/** The default stream of that device. */
export function computeStream(): number {
  return streams.compute;
}

/** Whether it is too late for another. */
export function isDeviceInUse(): boolean {
  const { device, communication, tensorParallel } = streams;
  return device === 'cuda' || communication !== undefined || tensorParallel !== undefined;
}

/**
 * Makes `cuda` the device of this process, for good: number `index` of the machine's, by default that of LOCAL_RANK. Before
 * anything is wrapped. Errors: ERR_CUDA_UNAVAILABLE, saying why; where streams of the CPU are in use already.
 */
export function useDevice(name: 'cpu' | 'cuda', index?: number): void {
  if (name === streams.device) return;
  if (isDeviceInUse())
    throw new Error(`this process computes on ${streams.device} already; ask for ${name} before models are wrapped`);
  streams.compute = native.computeStream(1, index);
  streams.device = name;
}

/** Collectives of FSDP run here, in the order of their enqueueing. */
export function communicationStream(): number {
  streams.communication ??= native.streamCreate('comm', streams.device === 'cuda' ? 1 : 0);
  return streams.communication;
}

/**
 * Parameters are gathered here. Where bytes must move it is a stream of its own, so that a gather does not wait behind a
 * reduction that was enqueued before it; within a host, where a gather takes no time, the communication stream.
 */
export function gatherStream(withinHost: boolean): number {
  if (streams.device === 'cpu' && withinHost) return communicationStream();
  streams.gather ??= native.streamCreate('gather', streams.device === 'cuda' ? 1 : 0);
  return streams.gather;
}

/** Collectives on host memory, which coordinate devices and bring them their weights. */
export function hostCommunicationStream(): number {
  if (streams.device === 'cpu') return communicationStream();
  streams.hostCommunication ??= native.streamCreate('host comm');
  return streams.hostCommunication;
}

/** Sums of gradients over tensor-parallel ranks run here while the compute stream goes on. */
export function tensorParallelStream(): number {
  streams.tensorParallel ??= native.streamCreate('tensor', streams.device === 'cuda' ? 1 : 0);
  return streams.tensorParallel;
}

/** Streams that fill memory side by side. */
export const numLoadingStreams: number = Math.min(4, Math.max(2, availableParallelism()));

/** File reads of loading run here; `lane` counts from 0, around. */
export function loadingStream(lane: number): number {
  const i = lane % numLoadingStreams;
  streams.loading[i] ??= native.streamCreate(`load ${i}`);
  return streams.loading[i];
}

/** Files are written here, so that a full disk is an error of the save and not of everything after it. */
export function fileStream(): number {
  streams.files ??= native.streamCreate('files');
  return streams.files;
}

/** After an error of its work: that breaks a stream for good, and the next fileStream() is another. */
export function replaceFileStream(broken: number): void {
  if (streams.files === broken) streams.files = undefined;
}

/** Runs `fn` with ops enqueued on `stream`. */
export function onStream<T>(stream: number, fn: () => T): T {
  const previous = native.streamSetCurrent(stream);
  try {
    return fn();
  } finally {
    native.streamSetCurrent(previous);
  }
}

/** Work enqueued on `waiting` from now on runs after everything enqueued on `stream` so far. */
export function order(stream: number, waiting: number): void {
  const event = native.eventRecord(stream);
  native.streamWaitEvent(waiting, event);
  native.eventRelease(event);
}

/** `fn` on the communication stream, between what was computed so far and what is computed from now on. The host does not wait. */
export function onCommunicationStream<T>(fn: () => T): T {
  const comm = communicationStream();
  order(computeStream(), comm);
  const result = onStream(comm, fn);
  order(comm, computeStream());
  return result;
}

/** As order, behind everything that was computed so far, on the device and on the host. */
export function orderBehindComputing(waiting: number): void {
  for (const stream of new Set([hostComputeStream, streams.compute])) order(stream, waiting);
}

/** A point in a stream that may be waited for later, by streams or by the host. */
export class StreamEvent {
  private readonly handle: Handle;

  constructor(stream: number) {
    this.handle = native.eventRecord(stream);
  }

  /** `stream` waits; the host does not. */
  waitOn(stream: number): void {
    native.streamWaitEvent(stream, this.handle);
  }

  /** Blocks the host. Throws what failed before the event. */
  synchronize(): void {
    native.eventSynchronize(this.handle);
  }

  wait(): Promise<void> {
    return native.eventWaitAsync(this.handle);
  }

  dispose(): void {
    native.eventRelease(this.handle);
  }
}
