// The streams of this process: compute (the default), communication, and loading. An event orders two of them without
// making JavaScript wait.
import { availableParallelism } from 'node:os';
import { type Handle, native } from '../native.ts';

export const computeStream = 0;

let communication: number | undefined;
const loading: number[] = [];

/** All collectives of FSDP run here, in the order of their enqueueing. */
export function communicationStream(): number {
  communication ??= native.streamCreate('comm');
  return communication;
}

let tensorParallel: number | undefined;

/** Sums of gradients over tensor-parallel ranks run here while the compute stream goes on. */
export function tensorParallelStream(): number {
  tensorParallel ??= native.streamCreate('tensor');
  return tensorParallel;
}

/** Streams that fill memory side by side. */
export const numLoadingStreams: number = Math.min(4, Math.max(2, availableParallelism()));

/** File reads of loading run here; `lane` counts from 0, around. */
export function loadingStream(lane: number): number {
  const i = lane % numLoadingStreams;
  loading[i] ??= native.streamCreate(`load ${i}`);
  return loading[i];
}

let files: number | undefined;

/** Files are written here, so that a full disk is an error of the save and not of everything after it. */
export function fileStream(): number {
  files ??= native.streamCreate('files');
  return files;
}

/** After an error of its work: that breaks a stream for good, and the next fileStream() is another. */
export function replaceFileStream(broken: number): void {
  if (files === broken) files = undefined;
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
