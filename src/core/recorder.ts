// What the program calls while it may be profiled: spans say what the JavaScript thread is at. They cost a test of a number
// when nothing is recorded. Tasks that are enqueued inside a span carry its name.
import { type NativeRecording, native } from '../native.ts';
import { processState } from './context.ts';
import { settle } from './finally.ts';

interface Recorder {
  /** The number of the recording in progress; 0: none. */
  current: number;
  started: number;
  /** From the start until what was recorded is taken or discarded. */
  busy: boolean;
}

const recorder: Recorder = processState<Recorder>('recorder', 'which profile is being recorded', {
  current: 0,
  started: 0,
  busy: false,
});

export const defaultMaxEvents = 100_000;

/** @internal Error: something is recorded already. */
export function startRecording(maxEvents: number = defaultMaxEvents): void {
  if (recorder.busy) throw new Error('profile: a profile is being recorded already; profiles do not nest');
  native.profileStart(maxEvents);
  recorder.current = ++recorder.started;
  recorder.busy = true;
}

/** @internal What is enqueued from now on is not recorded. */
export function stopRecording(): void {
  recorder.current = 0;
  native.profileStop();
}

/** @internal After stopRecording: what was recorded, when all of it has run. */
export async function takeRecording(): Promise<NativeRecording> {
  await native.profileDrain();
  return takeRecordingNow();
}

/** @internal As takeRecording; blocks. */
export function takeRecordingNow(): NativeRecording {
  recorder.busy = false;
  return native.profileTake();
}

/** @internal Stops, and forgets what was recorded. */
export function discardRecording(): void {
  recorder.current = 0;
  recorder.busy = false;
  native.profileDiscard();
}

/** @internal Whether something is recorded. */
export function isRecording(): boolean {
  return recorder.current > 0;
}

/** @internal A span that is not a function: it ends where `close` is called. */
export class OpenSpan {
  private number = -1;
  private recording = 0;

  /** Ends what was opened before. */
  open(kind: string, label = ''): void {
    this.close();
    if (!recorder.current) return;
    this.number = native.profileBegin(kind, label);
    this.recording = recorder.current;
  }

  close(): void {
    if (this.recording && this.recording === recorder.current) native.profileEnd(this.number);
    this.recording = 0;
  }
}

/** @internal As recordFunction; `label` is the unit or module that the span is about, and collectives show it. */
export function span<T>(kind: string, label: string, fn: () => T): T {
  if (!recorder.current) return fn();
  const open = new OpenSpan();
  open.open(kind, label);
  return settle(fn, () => open.close());
}

/**
 * Runs `fn` as a named part of the JavaScript track of profiles; ops that it enqueues carry the name. Nearly free when nothing
 * is recorded. With an async `fn` the part ends when its promise settles; do not interleave it with others. Mirrors
 * `torch.profiler.record_function`.
 */
export function recordFunction<T>(name: string, fn: () => T): T {
  return span(name, '', fn);
}
