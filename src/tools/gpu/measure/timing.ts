// Device times: events around a call, warm-up before, the median of many. Calls that memory bounds rotate over sets of operands,
// which together are several times the cache.
import { native } from '../../../native.ts';

export interface Timed {
  /** The median. */
  milliseconds: number;
  /** Of the middle half, relative to the median. */
  spread: number;
}

export interface TimingOptions {
  samples: number;
  /** Calls between two events; more for short ones, so that gaps between launches count less. */
  calls?: number | undefined;
}

/** `runs` in turns, on the current stream of the device. */
export function medianTime(runs: readonly (() => void)[], { samples, calls = 1 }: TimingOptions): Timed {
  const stream = native.computeStream(1);
  const warmUp = Math.max(runs.length, 3);
  for (let i = 0; i < warmUp; i++) runs[i % runs.length]!();
  native.streamSynchronize(stream);
  const marks: number[] = [native.cudaTimestamp(stream)];
  for (let sample = 0, turn = 0; sample < samples; sample++) {
    for (let i = 0; i < calls; i++) runs[turn++ % runs.length]!();
    marks.push(native.cudaTimestamp(stream));
  }
  native.streamSynchronize(stream);
  const times = marks.slice(1).map((mark, i) => native.cudaMilliseconds(marks[i]!, mark) / calls);
  native.cudaForgetTimestamps();
  times.sort((a, b) => a - b);
  const at = (share: number): number => times[Math.min(times.length - 1, Math.floor(share * times.length))]!;
  const median = at(0.5);
  return { milliseconds: median, spread: median > 0 ? (at(0.75) - at(0.25)) / median : 0 };
}

export function seconds(run: () => void): number {
  const start = performance.now();
  run();
  return (performance.now() - start) / 1000;
}
