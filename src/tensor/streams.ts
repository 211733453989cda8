// The streams of this process: compute (the default), communication, and loading. An event orders two of them without
// making JavaScript wait.
import { type Handle, native } from '../native.ts';

export const computeStream = 0;

let communication: number | undefined;
let loading: number | undefined;

/** All collectives of FSDP run here, in the order of their enqueueing. */
export function communicationStream(): number {
  communication ??= native.streamCreate('comm');
  return communication;
}

/** File reads of loading run here. */
export function loadingStream(): number {
  loading ??= native.streamCreate('load');
  return loading;
}

let files: number | undefined;

/**
 * Runs `fn` with a stream for file work that may fail without being the end (a full disk): an error breaks its stream for
 * good, and this one is replaced then. The stream starts after what is enqueued on the compute stream now.
 */
export async function withFileStream<T>(fn: (stream: number) => Promise<T>): Promise<T> {
  files ??= native.streamCreate('files');
  const stream = files;
  order(computeStream, stream);
  try {
    return await fn(stream);
  } catch (error) {
    if (files === stream) files = undefined;
    throw error;
  }
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
