// A profile as text.
import { formatCount } from '../core/format.ts';
import type { OpSummary, ProfileSummary, StreamSummary } from './summary.ts';

export interface TableOptions {
  /** Ops that are shown, the longest first. Default: all. */
  rowLimit?: number | undefined;
}

type Column<T> = readonly [title: string, cell: (row: T) => string];

const percent = (part: number): string => `${(100 * part).toFixed(1)} %`;
const fixed = (value: number): string => value.toFixed(value >= 100 ? 1 : 3);
const rate = (value: number): string => value.toFixed(value >= 10 ? 1 : 2);
const ifAny = (value: number | undefined, show: (value: number) => string): string => (value ? show(value) : '');

const opColumns: readonly Column<OpSummary>[] = [
  ['op', ({ op }) => op],
  ['stream', ({ stream }) => stream],
  ['calls', ({ calls }) => String(calls)],
  ['total ms', ({ total }) => fixed(total)],
  ['of time', ({ share }) => percent(share)],
  ['mean ms', ({ mean }) => fixed(mean)],
  ['max ms', ({ max }) => fixed(max)],
  ['waited ms', ({ waited }) => ifAny(waited, fixed)],
  ['GFLOP/s', ({ gflopPerSecond }) => ifAny(gflopPerSecond, rate)],
  ['GB/s', ({ gbPerSecond }) => ifAny(gbPerSecond, rate)],
];

const streamColumns: readonly Column<StreamSummary>[] = [
  ['stream', ({ stream }) => stream],
  ['busy', ({ busy }) => percent(busy)],
  ['waits for streams', ({ waitedForStreams }) => percent(waitedForStreams)],
  ['waits for ranks', ({ waitedForRanks }) => percent(waitedForRanks)],
  ['idle', ({ idle }) => percent(idle)],
];

/** Texts on the left, numbers on the right. */
function render<T>(columns: readonly Column<T>[], rows: readonly T[], texts: number): string[] {
  const cells = [columns.map(([title]) => title), ...rows.map((row) => columns.map(([, cell]) => cell(row)))];
  const widths = columns.map((_, c) => Math.max(...cells.map((row) => row[c]!.length)));
  return cells.map((row) =>
    row
      .map((cell, c) => (c < texts ? cell.padEnd(widths[c]!) : cell.padStart(widths[c]!)))
      .join('  ')
      .trimEnd(),
  );
}

/** Ops by total time, what each stream did, and what was in the way. Ends with a newline. */
export function formatTable(summary: ProfileSummary, { rowLimit }: TableOptions = {}): string {
  const { rank, duration, ops, streams, exposedCommunication, aheadMedian, dropped } = summary;
  const shown = ops.slice(0, rowLimit);
  const share = duration > 0 ? exposedCommunication / duration : 0;
  const lines = [
    `rank ${rank}: ${duration.toFixed(1)} ms profiled`,
    '',
    ...render(opColumns, shown, 2),
    ...(shown.length < ops.length ? [`and ${ops.length - shown.length} more`] : []),
    '',
    ...render(streamColumns, streams, 1),
    '',
    `exposed communication: ${exposedCommunication.toFixed(1)} ms, ${percent(share)} of the time`,
    `JavaScript was ahead of the compute stream by ${aheadMedian.toFixed(1)} ms (median)`,
  ];
  if (dropped > 0) {
    lines.push(`${formatCount(dropped)} events were dropped: profile less, or set a higher maxEvents`);
  }
  return `${lines.join('\n')}\n`;
}
