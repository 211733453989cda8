import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { crc32c, maskedCrc32c, TensorBoardWriter } from '../../src/train/report/tensorboard.ts';
import { evalRecord, runInfo, stepRecord } from './report_fixtures.ts';

interface DecodedEvent {
  wallTime: number;
  step: number;
  fileVersion?: string;
  sessionStatus?: number;
  scalars: Record<string, number>;
}

/** Splits TFRecord frames, checking both checksums of each. */
function records(file: Buffer): Buffer[] {
  const found: Buffer[] = [];
  for (let at = 0; at < file.length; ) {
    const length = Number(file.readBigUInt64LE(at));
    expect(file.readUInt32LE(at + 8)).toBe(maskedCrc32c(file.subarray(at, at + 8)));
    const data = file.subarray(at + 12, at + 12 + length);
    expect(file.readUInt32LE(at + 12 + length)).toBe(maskedCrc32c(data));
    found.push(data);
    at += 16 + length;
  }
  return found;
}

/** Protobuf fields by number; varints as numbers, the rest as bytes. */
function fields(data: Buffer): [number, number | Buffer][] {
  let at = 0;
  const varint = (): number => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = data[at++]!;
      value += (byte & 0x7f) * scale;
      if (byte < 0x80) return value;
    }
  };
  const found: [number, number | Buffer][] = [];
  while (at < data.length) {
    const key = varint();
    const wire = key & 7;
    if (wire === 0) found.push([key >>> 3, varint()]);
    else {
      const length = wire === 1 ? 8 : wire === 5 ? 4 : varint();
      found.push([key >>> 3, data.subarray(at, at + length)]);
      at += length;
    }
  }
  return found;
}

function decode(data: Buffer): DecodedEvent {
  const event: DecodedEvent = { wallTime: 0, step: 0, scalars: {} };
  for (const [field, value] of fields(data)) {
    if (field === 1) event.wallTime = (value as Buffer).readDoubleLE();
    if (field === 2) event.step = value as number;
    if (field === 3) event.fileVersion = String(value);
    if (field === 7) event.sessionStatus = new Map(fields(value as Buffer)).get(1) as number;
    if (field === 5) {
      for (const [, entry] of fields(value as Buffer)) {
        const parts = new Map(fields(entry as Buffer));
        event.scalars[String(parts.get(1))] = (parts.get(2) as Buffer).readFloatLE();
      }
    }
  }
  return event;
}

describe('TensorBoard event files', () => {
  let dir: string;
  beforeEach(() => {
    dir = mkdtempSync(join(tmpdir(), 'rankzero-tensorboard-'));
  });
  afterEach(() => rmSync(dir, { recursive: true }));

  const events = (): DecodedEvent[][] =>
    readdirSync(dir)
      .sort()
      .map((name) => records(readFileSync(join(dir, name))).map(decode));

  function write(startStep: number, steps: number[], time: number): void {
    let now = time;
    const writer = new TensorBoardWriter(dir, () => now++);
    writer.onStart(runInfo({ startStep }));
    for (const step of steps) writer.onStep(stepRecord({ step, loss: 4 + 1 / step, learningRate: 1e-4 * step }));
    writer.onEval(evalRecord({ step: steps.at(-1)!, loss: 3.5, perplexity: Math.exp(3.5) }));
    writer.onEnd();
  }

  it('uses CRC32C, checked against the vectors of RFC 3720', () => {
    expect(crc32c(new Uint8Array(32))).toBe(0x8a9136aa);
    expect(crc32c(new Uint8Array(32).fill(0xff))).toBe(0x62a8ab43);
    expect(crc32c(Uint8Array.from({ length: 32 }, (_, i) => i))).toBe(0x46dd794e);
    expect(crc32c(Buffer.from('123456789'))).toBe(0xe3069283);
  });

  it('writes version, session start, and scalars with their step and wall time', () => {
    write(0, [1, 2, 300], 1_700_000_000);
    const [file] = events();
    expect(file![0]).toMatchObject({ fileVersion: 'brain.Event:2', wallTime: 1_700_000_000, step: 0 });
    expect(file![1]).toMatchObject({ sessionStatus: 1, step: 1 });
    expect(file!.slice(2, 5).map((e) => e.step)).toEqual([1, 2, 300]);
    expect(file!.slice(2, 5).map((e) => e.wallTime)).toEqual([1_700_000_001, 1_700_000_002, 1_700_000_003]);
    expect(file![4]!.scalars['train/loss']).toBe(Math.fround(4 + 1 / 300));
    expect(file![4]!.scalars['train/learning_rate']).toBe(Math.fround(0.03));
    expect(file![5]).toMatchObject({ step: 300, scalars: { 'eval/loss': 3.5 } });
  });

  it('a resumed run adds a file whose session starts after the checkpoint', () => {
    write(0, [1, 2, 3], 1_700_000_000);
    write(2, [3, 4], 1_700_000_100);
    const files = events();
    expect(files).toHaveLength(2);
    expect(files[1]![1]).toMatchObject({ sessionStatus: 1, step: 3 });
  });

  it('a run from the start replaces the files of an earlier one', () => {
    write(0, [1, 2, 3], 1_700_000_000);
    write(0, [1], 1_700_000_100);
    expect(events()).toHaveLength(1);
  });
});
