// What a profile adds up to: time by op, what each stream did, and how much communication was in the way.
import { droppedEvents, type Recording, type Task, tasksOf } from './recording.ts';

/** All calls of one op on one stream. Times are milliseconds. */
export interface OpSummary {
  op: string;
  stream: string;
  calls: number;
  total: number;
  mean: number;
  max: number;
  /** Part of the profiled time; streams run side by side, so the sum over all may be above 1. */
  share: number;
  /** Waiting for other ranks, within `total`. */
  waited: number;
  /** Of the calls whose work is known, without their waiting for other ranks. */
  gflopPerSecond: number | undefined;
  /** Memory that the operands span, or the whole tensor of a collective. */
  gbPerSecond: number | undefined;
}

/** Parts of the profiled time. */
export interface StreamSummary {
  stream: string;
  /** Work, without waiting for other ranks. */
  busy: number;
  waitedForStreams: number;
  waitedForRanks: number;
  /** Nothing was enqueued. */
  idle: number;
}

export interface ProfileSummary {
  rank: number;
  /** From the first op of the compute stream to the end of the last op. Milliseconds. */
  duration: number;
  /** The longest in total first. */
  ops: OpSummary[];
  streams: StreamSummary[];
  /** Time in which the compute stream waited for communication, or did it itself. Milliseconds. */
  exposedCommunication: number;
  /** From the enqueueing of an op to its start on the compute stream, the median. Milliseconds. */
  aheadMedian: number;
  /** Events that did not fit into the buffers. */
  dropped: number;
}

const collectives: ReadonlySet<string> = new Set(
  'broadcast scatter all_reduce all_gather reduce_scatter all_to_all barrier send recv'.split(' ') as readonly string[],
);

export function isCollective(op: string): boolean {
  return collectives.has(op);
}

/** Streams that carry nothing but communication. */
const communicates = (stream: string): boolean => ['comm', 'gather', 'tensor'].includes(stream);
const isWork = (task: Task): boolean => task.awaits === undefined;
const sum = <T>(items: readonly T[], of: (item: T) => number): number =>
  items.reduce((total, item) => total + of(item), 0);

function groupBy<T, K>(items: readonly T[], keyOf: (item: T) => K): Map<K, T[]> {
  const groups = new Map<K, T[]>();
  for (const item of items) {
    const group = groups.get(keyOf(item));
    if (group) group.push(item);
    else groups.set(keyOf(item), [item]);
  }
  return groups;
}

const milliseconds = ({ start, end }: Task): number => (end - start) / 1e6;

export function summarize(recording: Recording): ProfileSummary {
  const tasks = tasksOf(recording);
  const work = tasks.filter(isWork);
  const onCompute = work.filter(({ stream }) => stream === recording.compute);
  const begin = (onCompute.length > 0 ? onCompute : work).reduce(
    (least, { start }) => Math.min(least, start),
    Infinity,
  );
  const end = work.reduce((most, task) => Math.max(most, task.end), begin);
  const duration = work.length > 0 ? (end - begin) / 1e6 : 0;
  const name = (stream: number): string => recording.streams[stream]!.name;
  /** The part of a task that lies in the profiled time. */
  const within = (task: Task): number => Math.max(0, Math.min(task.end, end) - Math.max(task.start, begin)) / 1e6;
  const ahead = onCompute.map(({ start, enqueued }) => (start - enqueued) / 1e6).sort((a, b) => a - b);
  const exposed = tasks.filter(
    ({ stream, awaits, op }) =>
      stream === recording.compute && (awaits === undefined ? isCollective(op) : communicates(name(awaits))),
  );
  return {
    rank: recording.rank,
    duration,
    ops: summarizeOps(work, duration, name),
    streams: summarizeStreams(tasks, duration, name, within),
    exposedCommunication: sum(exposed, within),
    aheadMedian: ahead[ahead.length >> 1] ?? 0,
    dropped: droppedEvents(recording),
  };
}

function summarizeOps(work: readonly Task[], duration: number, name: (stream: number) => string): OpSummary[] {
  const groups = groupBy(work, ({ op, stream }) => `${stream} ${op}`);
  const rate = (tasks: readonly Task[], of: (task: Task) => number): number | undefined => {
    const known = tasks.filter((task) => of(task) > 0);
    const seconds = sum(known, ({ start, end, waited }) => end - start - waited) / 1e9;
    return seconds > 0 ? sum(known, of) / seconds / 1e9 : undefined;
  };
  const ops = [...groups.values()].map((tasks): OpSummary => {
    const total = sum(tasks, milliseconds);
    return {
      op: tasks[0]!.op,
      stream: name(tasks[0]!.stream),
      calls: tasks.length,
      total,
      mean: total / tasks.length,
      max: tasks.reduce((most, task) => Math.max(most, milliseconds(task)), 0),
      share: duration > 0 ? total / duration : 0,
      waited: sum(tasks, ({ waited }) => waited) / 1e6,
      gflopPerSecond: rate(tasks, ({ flops }) => flops),
      gbPerSecond: rate(tasks, ({ bytes }) => bytes),
    };
  });
  return ops.sort((a, b) => b.total - a.total);
}

function summarizeStreams(
  tasks: readonly Task[],
  duration: number,
  name: (stream: number) => string,
  within: (task: Task) => number,
): StreamSummary[] {
  const groups = [...groupBy(tasks, ({ stream }) => stream)].sort(([a], [b]) => a - b);
  const part = (ms: number): number => (duration > 0 ? ms / duration : 0);
  return groups.map(([stream, own]) => {
    const work = own.filter(isWork);
    const waitedForRanks = part(sum(work, (task) => Math.min(task.waited / 1e6, within(task))));
    const busy = part(sum(work, within)) - waitedForRanks;
    const waitedForStreams = part(
      sum(
        own.filter((task) => !isWork(task)),
        within,
      ),
    );
    const idle = Math.max(0, 1 - busy - waitedForRanks - waitedForStreams);
    return { stream: name(stream), busy, waitedForStreams, waitedForRanks, idle };
  });
}
