// A profile as Chrome trace events, for chrome://tracing and https://ui.perfetto.dev: ranks are processes, streams and the
// JavaScript thread are tracks, and arrows lead from a part of the program to the first task that it enqueued on a stream.
import { droppedEvents, type Recording, type Span, spansOf, type Task, tasksOf } from './recording.ts';
import { isCollective } from './summary.ts';

/** An event of the format; times are microseconds. */
export interface TraceEvent {
  ph: 'X' | 'M' | 'C' | 's' | 'f';
  name: string;
  cat?: string;
  pid: number;
  tid: number;
  ts?: number;
  dur?: number;
  id?: string;
  bp?: 'e';
  args?: Record<string, unknown>;
}

const javascript = 0;
const trackOf = (stream: number): number => stream + 1;

/** `all_gather model.layers.3`, `linear_forward`, `wait for comm`. */
function titleOf(task: Task, recording: Recording, span: Span | undefined): string {
  if (task.awaits !== undefined) {
    const what = `wait for ${recording.streams[task.awaits]?.name}`;
    return task.op === 'wait for reuse' ? `${what} (memory)` : what;
  }
  return isCollective(task.op) && span?.label ? `${task.op} ${span.label}` : task.op;
}

const round = (value: number): number => Number(value.toPrecision(4));
const spanTitle = ({ kind, label }: Span): string => (label ? `${kind} ${label}` : kind);

function argsOf(task: Task, span: Span | undefined): Record<string, unknown> {
  const { sizes, dtype, flops, bytes, start, end, enqueued, waited, awaits } = task;
  const seconds = (end - start - waited) / 1e9;
  return {
    ...(span && { in: spanTitle(span) }),
    queued_ms: round((start - enqueued) / 1e6),
    ...(awaits === undefined && waited > 0 && { waited_for_ranks_ms: round(waited / 1e6) }),
    ...(Object.keys(sizes).length > 0 && { ...sizes, dtype }),
    ...(flops > 0 && seconds > 0 && { gflop_per_s: round(flops / seconds / 1e9) }),
    ...(bytes > 0 && { bytes }),
    ...(bytes > 0 && seconds > 0 && { gb_per_s: round(bytes / seconds / 1e9) }),
  };
}

function* metadata({ rank, streams }: Recording, used: ReadonlySet<number>): Generator<TraceEvent> {
  const about = (name: string, tid: number, args: Record<string, unknown>): TraceEvent => ({
    ph: 'M',
    name,
    pid: rank,
    tid,
    args,
  });
  yield about('process_name', javascript, { name: `rank ${rank}` });
  yield about('process_sort_index', javascript, { sort_index: rank });
  const tracks: [number, string][] = [[javascript, 'JavaScript']];
  for (const [i, { name }] of streams.entries()) if (used.has(i)) tracks.push([trackOf(i), name]);
  for (const [tid, name] of tracks) {
    yield about('thread_name', tid, { name });
    yield about('thread_sort_index', tid, { sort_index: tid });
  }
}

/** The events of one rank; `zero` is the time 0 of the trace, in nanoseconds of the clock that all ranks share. */
function* rankEvents(recording: Recording, zero: number): Generator<TraceEvent> {
  const pid = recording.rank;
  const tasks = tasksOf(recording);
  const spans = new Map(spansOf(recording).map((span) => [span.number, span]));
  const time = (ns: number): number => (recording.startedAt - zero + ns) / 1000;
  yield* metadata(recording, new Set(tasks.map(({ stream }) => stream)));
  for (const span of spans.values()) {
    const { start, end, memoryBefore, memoryAfter } = span;
    yield {
      ph: 'X',
      name: spanTitle(span),
      cat: 'javascript',
      pid,
      tid: javascript,
      ts: time(start),
      dur: (end - start) / 1000,
    };
    yield { ph: 'C', name: 'memory', pid, tid: javascript, ts: time(start), args: { ...memoryBefore } };
    yield { ph: 'C', name: 'memory', pid, tid: javascript, ts: time(end), args: { ...memoryAfter } };
  }
  const arrows = new Set<string>();
  for (const task of tasks) {
    const { stream, start, end, awaits } = task;
    const tid = trackOf(stream);
    const span = task.span === undefined ? undefined : spans.get(task.span);
    yield {
      ph: 'X',
      name: titleOf(task, recording, span),
      cat: awaits === undefined ? (isCollective(task.op) ? 'collective' : 'op') : 'wait',
      pid,
      tid,
      ts: time(start),
      dur: (end - start) / 1000,
      args: argsOf(task, span),
    };
    const id = `${pid}.${task.span}.${stream}`;
    if (!span || awaits !== undefined || arrows.has(id)) continue;
    arrows.add(id);
    const arrow = { name: 'enqueue', cat: 'enqueue', pid, id };
    yield { ph: 's', ...arrow, tid: javascript, ts: time(span.start) };
    yield { ph: 'f', bp: 'e', ...arrow, tid, ts: time(start) };
  }
}

/** The text of a trace file, in pieces that are worth a write. */
export function* chromeTrace(recordings: readonly Recording[]): Generator<string> {
  const zero = Math.min(...recordings.map(({ startedAt }) => startedAt));
  let piece = '{"displayTimeUnit":"ms","traceEvents":[';
  let separator = '\n';
  for (const recording of recordings) {
    for (const event of rankEvents(recording, zero)) {
      piece += `${separator}${JSON.stringify(event)}`;
      separator = ',\n';
      if (piece.length < 1 << 20) continue;
      yield piece;
      piece = '';
    }
  }
  const dropped = Object.fromEntries(
    recordings.map((recording) => [`rank ${recording.rank}`, droppedEvents(recording)]),
  );
  yield `${piece}\n],"otherData":${JSON.stringify({ droppedEvents: dropped })}}\n`;
}
