// What one rank recorded: rows of numbers as the addon gives them (binding/profile.cc), which travel to rank 0 as they are, and
// the same as objects.
import { type MemoryKind, memoryKinds, type NativeRecording } from '../native.ts';
import { type DType, dtypeFromNumber } from '../tensor/dtype.ts';

export interface Recording extends NativeRecording {
  rank: number;
  /** The stream on which models compute. */
  compute: number;
}

/** A task of a stream. Times are nanoseconds since the recording began. */
export interface Task {
  stream: number;
  op: string;
  enqueued: number;
  start: number;
  end: number;
  /** Part of it that was waiting for other ranks. */
  waited: number;
  /** The span that enqueued it: its number. */
  span: number | undefined;
  /** For a wait: the stream that is waited for. */
  awaits: number | undefined;
  /** Least arithmetic, and memory that the operands span; of a collective the bytes of the whole tensor. 0: unknown. */
  flops: number;
  bytes: number;
  sizes: Record<string, number>;
  dtype: DType;
}

/** A part of what the JavaScript thread did. */
export interface Span {
  number: number;
  kind: string;
  /** The FSDP unit it is about. */
  label: string | undefined;
  start: number;
  end: number;
  /** Bytes in use. */
  memoryBefore: Record<MemoryKind, number>;
  memoryAfter: Record<MemoryKind, number>;
}

const taskColumns = 16;
const spanColumns = 5 + 2 * memoryKinds.length;

export function tasksOf({ tasks, names }: Recording): Task[] {
  return Array.from({ length: tasks.length / taskColumns }, (_, i) => {
    const row = tasks.subarray(i * taskColumns, (i + 1) * taskColumns);
    const [stream, op, enqueued, start, end, waited, inSpan, awaits, flops, bytes, axes, dtype] = row as unknown as Row;
    const axisNames = names[axes]!.split(' ').filter(Boolean);
    return {
      stream,
      op: names[op]!,
      enqueued,
      start,
      end,
      waited,
      span: inSpan < 0 ? undefined : inSpan,
      awaits: awaits < 0 ? undefined : awaits,
      flops,
      bytes,
      sizes: Object.fromEntries(axisNames.map((name, k) => [name, row[12 + k]!])),
      dtype: dtypeFromNumber(dtype),
    };
  });
}

type Row = [number, number, number, number, number, number, number, number, number, number, number, number];

export function spansOf({ spans, names }: Recording): Span[] {
  return Array.from({ length: spans.length / spanColumns }, (_, i) => {
    const row = spans.subarray(i * spanColumns, (i + 1) * spanColumns);
    const memory = (from: number): Record<MemoryKind, number> =>
      Object.fromEntries(memoryKinds.map((kind, k) => [kind, row[from + k]!])) as Record<MemoryKind, number>;
    return {
      number: row[0]!,
      kind: names[row[1]!]!,
      label: row[2]! < 0 ? undefined : names[row[2]!]!,
      start: row[3]!,
      end: row[4]!,
      memoryBefore: memory(5),
      memoryAfter: memory(5 + memoryKinds.length),
    };
  });
}

/** Events that did not fit. */
export function droppedEvents({ streams, droppedSpans }: Recording): number {
  return streams.reduce((sum, { dropped }) => sum + dropped, droppedSpans);
}

/** For the way to rank 0: the length of a JSON text, the text, padding to 8 bytes, tasks, spans. */
export function packRecording({ tasks, spans, ...rest }: Recording): Uint8Array {
  const head = new TextEncoder().encode(JSON.stringify({ ...rest, tasks: tasks.length, spans: spans.length }));
  const at = Math.ceil((8 + head.length) / 8) * 8;
  const bytes = new Uint8Array(at + tasks.byteLength + spans.byteLength);
  new DataView(bytes.buffer).setUint32(0, head.length, true);
  bytes.set(head, 8);
  new Float64Array(bytes.buffer, at).set(tasks);
  new Float64Array(bytes.buffer, at + tasks.byteLength).set(spans);
  return bytes;
}

export function unpackRecording(packed: Uint8Array): Recording {
  const bytes = packed.slice(); // aligned
  const length = new DataView(bytes.buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
  const at = Math.ceil((8 + length) / 8) * 8;
  return {
    ...head,
    tasks: new Float64Array(bytes.buffer, at, head.tasks),
    spans: new Float64Array(bytes.buffer, at + 8 * head.tasks, head.spans),
  };
}
