// TensorBoard event files: TFRecord framing (length, masked CRC32C of it, data, masked CRC32C of that) around
// protobuf Event messages with one Summary of scalars each. The few protobuf fields needed are written by hand.
import { closeSync, mkdirSync, openSync, readdirSync, rmSync, writeSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { processState } from '../../core/context.ts';
import type { EvalRecord, Reporter, RunInfo, StepRecord } from '../reporter.ts';

const crcTable: Uint32Array = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  return crc;
});

/** CRC32C (Castagnoli), not the CRC-32 of zlib. */
export function crc32c(data: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of data) crc = (crc >>> 8) ^ crcTable[(crc ^ byte) & 0xff]!;
  return ~crc >>> 0;
}

/** TFRecord masks its checksums, so that a checksum over data that holds checksums stays sound. */
export function maskedCrc32c(data: Uint8Array): number {
  const crc = crc32c(data);
  return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0;
}

/** One TFRecord. */
export function frameRecord(data: Uint8Array): Buffer {
  const record = Buffer.alloc(12 + data.length + 4);
  record.writeBigUInt64LE(BigInt(data.length), 0);
  record.writeUInt32LE(maskedCrc32c(record.subarray(0, 8)), 8);
  record.set(data, 12);
  record.writeUInt32LE(maskedCrc32c(data), 12 + data.length);
  return record;
}

// Protobuf: a field is (number << 3 | wire type), then a varint (0), 8 bytes (1), length and bytes (2) or 4 bytes (5).
function varint(value: number): Buffer {
  const bytes: number[] = [];
  let rest = value;
  while (rest > 0x7f) {
    bytes.push((rest % 128) | 0x80);
    rest = Math.floor(rest / 128);
  }
  return Buffer.from([...bytes, rest]);
}

const key = (field: number, wire: number): Buffer => varint(field * 8 + wire);
const uint = (field: number, value: number): Buffer => Buffer.concat([key(field, 0), varint(value)]);
const bytes = (field: number, value: Uint8Array | string): Buffer => {
  const data = Buffer.from(value);
  return Buffer.concat([key(field, 2), varint(data.length), data]);
};
const float64 = (field: number, value: number): Buffer => {
  const data = Buffer.alloc(8);
  data.writeDoubleLE(value);
  return Buffer.concat([key(field, 1), data]);
};
const float32 = (field: number, value: number): Buffer => {
  const data = Buffer.alloc(4);
  data.writeFloatLE(value);
  return Buffer.concat([key(field, 5), data]);
};

/** Event { wall_time = 1, step = 2, file_version = 3 | summary = 5 | session_log = 7 }. */
const event = (wallTime: number, step: number, body: Buffer): Buffer =>
  Buffer.concat([float64(1, wallTime), uint(2, step), body]);
/** Summary { repeated Value value = 1 }, Value { tag = 1, simple_value = 2 }. */
const scalars = (values: Record<string, number>): Buffer =>
  bytes(
    5,
    Buffer.concat(Object.entries(values).map(([tag, v]) => bytes(1, Buffer.concat([bytes(1, tag), float32(2, v)])))),
  );
/** SessionLog { status = 1 }; START makes TensorBoard forget what an earlier session wrote from this step on. */
const sessionStart: Buffer = bytes(7, uint(1, 1));

const written: { files: number } = processState('tensorboard', 'event files of this process', { files: 0 });

/** Writes event files to a folder, one for each start; a run that does not resume removes the earlier ones. */
export class TensorBoardWriter implements Reporter {
  readonly #dir: string;
  readonly #now: () => number;
  #fd: number | undefined;

  /** @param now seconds since 1970. */
  constructor(dir: string, now: () => number = () => Date.now() / 1000) {
    this.#dir = dir;
    this.#now = now;
  }

  onStart({ startStep }: RunInfo): void {
    mkdirSync(this.#dir, { recursive: true });
    if (startStep === 0) {
      for (const name of readdirSync(this.#dir)) {
        if (name.startsWith('events.out.tfevents.')) rmSync(join(this.#dir, name));
      }
    }
    const time = this.#now();
    const name = `events.out.tfevents.${Math.floor(time)}.${hostname()}.${process.pid}.${written.files++}`;
    this.#fd = openSync(join(this.#dir, name), 'wx');
    this.#write(event(time, 0, bytes(3, 'brain.Event:2')));
    this.#write(event(time, startStep + 1, sessionStart));
  }

  onStep(record: StepRecord): void {
    this.#scalars(record.step, {
      'train/loss': record.loss,
      'train/learning_rate': record.learningRate,
      'train/grad_norm': record.gradNorm,
      'train/epoch': record.epoch,
      'speed/tokens_per_second': record.tokensPerSecond,
      'speed/step_seconds': record.seconds,
      'memory/resident_gb': record.memoryBytes / 1e9,
      ...(record.deviceMemoryBytes === undefined
        ? {}
        : {
            'memory/device_peak_gb': record.deviceMemoryBytes / 1e9,
            'memory/device_reserved_gb': (record.deviceReservedBytes ?? 0) / 1e9,
          }),
    });
  }

  onEval(record: EvalRecord): void {
    this.#scalars(record.step, { 'eval/loss': record.loss, 'eval/perplexity': record.perplexity });
  }

  onEnd(): void {
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = undefined;
  }

  #scalars(step: number, values: Record<string, number>): void {
    this.#write(event(this.#now(), step, scalars(values)));
  }

  #write(data: Buffer): void {
    if (this.#fd !== undefined) writeSync(this.#fd, frameRecord(data));
  }
}
