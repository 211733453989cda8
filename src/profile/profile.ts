// The profiler that a program uses: profile(fn), and the profile that comes out of it.
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  defaultMaxEvents,
  discardRecording,
  startRecording,
  stopRecording,
  takeRecording,
  takeRecordingNow,
} from '../core/recorder.ts';
import { onAllRanks } from '../distributed/agree.ts';
import { dist } from '../distributed/index.ts';
import type { NativeRecording } from '../native.ts';
import { computeStream } from '../tensor/streams.ts';
import { packRecording, type Recording, unpackRecording } from './recording.ts';
import { type ProfileSummary, summarize } from './summary.ts';
import { formatTable, type TableOptions } from './table.ts';
import { chromeTrace } from './trace.ts';

export interface ProfileOptions {
  /**
   * Most ops of each stream, and most parts of the JavaScript track, that are kept: about 130 bytes each, taken when they are
   * recorded. What comes later is dropped and counted. Default 100000.
   */
  maxEvents?: number | undefined;
}

export interface SaveProfileOptions {
  /** Default true: the profiles of all ranks in one trace, written by rank 0; every rank calls `save`. False: this rank's alone. */
  allRanks?: boolean | undefined;
}

export interface SavedProfile {
  /** Chrome trace JSON, for chrome://tracing and https://ui.perfetto.dev. */
  trace: string;
  /** The tables of the ranks. */
  table: string;
}

/** What this rank did, and what the profiled function returned. */
export class Profile<T = unknown> {
  readonly result: T;
  private readonly recording: Recording;
  private summarized: ProfileSummary | undefined;

  /** @internal */
  constructor(recording: NativeRecording, result: T) {
    this.recording = { ...recording, rank: dist.isInitialized() ? dist.getRank() : 0, compute: computeStream() };
    this.result = result;
  }

  /** The numbers of the table. */
  get summary(): ProfileSummary {
    this.summarized ??= summarize(this.recording);
    return this.summarized;
  }

  /** Time by op, what each stream did, and how much communication was exposed, as text. */
  table(options: TableOptions = {}): string {
    return formatTable(this.summary, options);
  }

  /** Writes `trace.json` and `profile.txt` into `dir`. Collective, unless it is for this rank alone. */
  async save(dir: string, { allRanks = true }: SaveProfileOptions = {}): Promise<SavedProfile> {
    const files = { trace: join(dir, 'trace.json'), table: join(dir, 'profile.txt') };
    if (!allRanks || !dist.isInitialized() || dist.group.size === 1) {
      await write(files, dir, [this.recording]);
      return files;
    }
    const packed = dist.group.allGatherBytes(packRecording(this.recording));
    await onAllRanks(dist.group, 'saving the profile', async () => {
      if (dist.getRank() === 0) await write(files, dir, packed.map(unpackRecording));
    });
    return files;
  }
}

async function write({ trace, table }: SavedProfile, dir: string, recordings: readonly Recording[]): Promise<void> {
  await mkdir(dir, { recursive: true });
  await writeFile(table, recordings.map((recording) => formatTable(summarize(recording))).join('\n'));
  await writeFile(trace, chromeTrace(recordings));
}

/**
 * Records what `fn` enqueues on the streams of this rank, and what the JavaScript thread is at. Waits until that has run.
 * Results are the same bits with and without it. Mirrors `torch.profiler.profile`.
 *
 * @throws What `fn` throws; the profile is dropped then. An error if one is being recorded already: profiles do not nest.
 */
export function profile<T>(fn: () => Promise<T>, options?: ProfileOptions): Promise<Profile<T>>;
export function profile<T>(fn: () => T, options?: ProfileOptions): Profile<T>;
export function profile<T>(
  fn: () => T | Promise<T>,
  { maxEvents = defaultMaxEvents }: ProfileOptions = {},
): Profile<T> | Promise<Profile<T>> {
  startRecording(maxEvents);
  let result: T | Promise<T>;
  try {
    result = fn();
  } catch (error) {
    discardRecording();
    throw error;
  }
  if (result instanceof Promise) return settle(result);
  stopRecording();
  return new Profile(takeRecordingNow(), result);
}

async function settle<T>(pending: Promise<T>): Promise<Profile<T>> {
  let result: T;
  try {
    result = await pending;
  } catch (error) {
    discardRecording();
    throw error;
  }
  stopRecording();
  return new Profile(await takeRecording(), result);
}
