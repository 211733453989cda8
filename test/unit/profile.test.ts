// Profiles: what is recorded of a function, what the trace and the table say of it, and what happens when it fails.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { add } from '../../src/autograd/functions/arithmetic.ts';
import { linear } from '../../src/autograd/functions/linear.ts';
import { isRecording, recordFunction } from '../../src/core/recorder.ts';
import { memoryKinds, native } from '../../src/native.ts';
import { type Profile, profile } from '../../src/profile/profile.ts';
import { packRecording, type Recording, unpackRecording } from '../../src/profile/recording.ts';
import { summarize } from '../../src/profile/summary.ts';
import { formatTable } from '../../src/profile/table.ts';
import { chromeTrace, type TraceEvent } from '../../src/profile/trace.ts';
import { communicationStream, computeStream, onStream, order } from '../../src/tensor/streams.ts';
import { Tensor } from '../../src/tensor/tensor.ts';

const x = Tensor.full([64, 32], 0.5);
const w = Tensor.full([16, 32], 0.25);

/** Two products on the compute stream, then a copy on the communication stream, which the compute stream waits for. */
function work(): Tensor {
  return recordFunction('products', () => {
    const y = linear(linear(x, w), Tensor.full([8, 16], 1));
    order(computeStream(), communicationStream());
    const copy = Tensor.empty(y.shape);
    onStream(communicationStream(), () => copy.copyFrom(y));
    order(communicationStream(), computeStream());
    return recordFunction('sum', () => add(y, copy));
  });
}

async function traceOf(profiled: Profile): Promise<TraceEvent[]> {
  const dir = mkdtempSync(join(tmpdir(), 'rankzero-profile-'));
  try {
    const files = await profiled.save(join(dir, 'new', 'folder'));
    expect(readFileSync(files.table, 'utf8')).toBe(profiled.table());
    return JSON.parse(readFileSync(files.trace, 'utf8')).traceEvents;
  } finally {
    rmSync(dir, { recursive: true });
  }
}

describe('profile(fn)', () => {
  it('returns what fn returns, and waits for what it enqueued', () => {
    const profiled = profile(work);
    expect(profiled.result.shape).toEqual([64, 8]);
    const ops = Object.fromEntries(profiled.summary.ops.map(({ op, calls }) => [op, calls]));
    expect(ops).toEqual({ linear_forward: 2, copy: 1, add: 1, fill: 1 });
    expect(profiled.summary.dropped).toBe(0);
    expect(isRecording()).toBe(false);
  });

  it('with an async fn it gives a promise', async () => {
    const profiled = await profile(async () => {
      const result = work();
      await result.data();
      return 'done';
    });
    expect(profiled.result).toBe('done');
    expect(profiled.summary.ops.find(({ op }) => op === 'linear_forward')?.calls).toBe(2);
  });

  it('records nothing before and after', () => {
    work();
    const { summary } = profile(() => add(x, x));
    work();
    expect(summary.ops.map(({ op }) => op)).toEqual(['add']);
  });

  it('stops and rethrows when fn throws or rejects, and the next profile is whole', async () => {
    const failure = new Error('mine');
    const fails = (): never => {
      work();
      throw failure;
    };
    expect(() => profile(fails)).toThrow(failure);
    expect(isRecording()).toBe(false);
    await expect(profile(async () => fails())).rejects.toBe(failure);
    expect(isRecording()).toBe(false);
    expect(profile(() => add(x, x)).summary.ops.map(({ calls }) => calls)).toEqual([1]);
  });

  it('does not nest', async () => {
    const message = 'profile: a profile is being recorded already; profiles do not nest';
    expect(() => profile(() => profile(work))).toThrow(message);
    const outer = profile(async () => {
      expect(() => profile(work)).toThrow(message);
      return add(x, x);
    });
    expect((await outer).summary.ops.map(({ op }) => op)).toEqual(['add']);
    expect(() => native.profileTake()).not.toThrow();
  });

  it('keeps the first events and counts the rest', async () => {
    const profiled = profile(work, { maxEvents: 2 });
    expect(profiled.summary.ops.reduce((sum, { calls }) => sum + calls, 0)).toBeLessThan(5);
    expect(profiled.summary.dropped).toBeGreaterThan(0);
    expect(profiled.table()).toMatch(/\d events were dropped/);
    expect(() => profile(work, { maxEvents: 0 })).toThrow('at most 0 events');
    expect(profile(() => add(x, x)).summary.dropped).toBe(0);
  });

  it('computes the same bits', async () => {
    expect(await profile(work).result.data()).toEqual(await work().data());
  });
});

describe('the trace', () => {
  it('has a track for each stream, a slice for each op, and what it knows of it', async () => {
    const events = await traceOf(profile(work));
    const names = events.filter(({ ph, name }) => ph === 'M' && name === 'thread_name');
    expect(names.map(({ args }) => args!.name)).toEqual(['JavaScript', 'compute', 'comm']);
    const products = events.filter(({ name }) => name === 'linear_forward');
    expect(products.map(({ args }) => args)).toEqual([
      expect.objectContaining({ in: 'products', rows: 64, in_features: 32, out_features: 16, dtype: 'float32' }),
      expect.objectContaining({ rows: 64, in_features: 16, out_features: 8, gflop_per_s: expect.any(Number) }),
    ]);
    const copy = events.find(({ name }) => name === 'copy')!;
    expect(copy).toMatchObject({ ph: 'X', tid: 2, args: { elements: 512, bytes: 4096 } });
  });

  it('shows parts of the program, nested, with memory, and arrows to what they enqueued', async () => {
    const events = await traceOf(profile(work));
    const parts = events.filter(({ ph, tid }) => ph === 'X' && tid === 0);
    expect(parts.map(({ name }) => name)).toEqual(['products', 'sum']);
    const [outer, inner] = parts as [TraceEvent, TraceEvent];
    expect(inner.ts!).toBeGreaterThanOrEqual(outer.ts!);
    expect(inner.ts! + inner.dur!).toBeLessThanOrEqual(outer.ts! + outer.dur! + 0.001);
    const counters = events.filter(({ ph }) => ph === 'C');
    expect(counters.length).toBe(4);
    expect(Object.keys(counters[0]!.args!)).toEqual(memoryKinds);
    const arrows = events.filter(({ ph }) => ph === 's' || ph === 'f');
    expect(arrows.map(({ ph, tid }) => [ph, tid])).toEqual([
      ['s', 0],
      ['f', 1],
      ['s', 0],
      ['f', 1],
      ['s', 0],
      ['f', 2],
    ]);
  });

  it('of an empty function is empty, and the table says so', async () => {
    const profiled = profile(() => 7);
    expect((await traceOf(profiled)).every(({ ph }) => ph === 'M')).toBe(true);
    expect(profiled.table()).toContain('0.0 ms profiled');
  });
});

/** Made by hand: times in ms. Columns as in src/profile/recording.ts. */
function recording(): Recording {
  const names = ['linear_forward', 'all_gather', 'wait', 'rows in_features', '', 'gather', 'layers.1'];
  const ms = 1e6;
  const task = (row: number[], work: number[], sizes: number[] = []): number[] => [
    ...row,
    ...work,
    ...sizes,
    ...new Array(4 - sizes.length).fill(0),
  ];
  return {
    rank: 1,
    compute: 0,
    startedAt: 5 * ms,
    names,
    streams: [
      { name: 'compute', dropped: 0 },
      { name: 'comm', dropped: 3 },
    ],
    tasks: Float64Array.from(
      [
        // stream, op, enqueued, start, end, waited, span, awaits; flops, bytes, axes, dtype
        task([0, 0, 0, 10 * ms, 14 * ms, 0, -1, -1], [8e6, 0, 3, 0], [4, 2]),
        task([0, 2, 0, 14 * ms, 17 * ms, 0, -1, 1], [0, 0, 4, 0]),
        task([0, 0, 0, 17 * ms, 20 * ms, 0, -1, -1], [6e6, 0, 3, 0], [4, 2]),
        task([1, 1, 2 * ms, 12 * ms, 17 * ms, 1 * ms, 0, -1], [0, 8e6, 4, 0]),
      ].flat(),
    ),
    spans: Float64Array.from([0, 5, 6, 1 * ms, 3 * ms, ...new Array(14).fill(0)]),
    droppedSpans: 1,
  };
}

describe('the table', () => {
  it('adds up ops, streams and exposed communication', () => {
    const onDevice = { ...recording(), compute: 1 };
    expect(summarize(onDevice)).toMatchObject({ duration: 8, exposedCommunication: 5, aheadMedian: 10 });
    const summary = summarize(recording());
    expect(summary).toMatchObject({ rank: 1, duration: 10, exposedCommunication: 3, aheadMedian: 17, dropped: 4 });
    expect(summary.ops).toEqual([
      {
        op: 'linear_forward',
        stream: 'compute',
        calls: 2,
        total: 7,
        mean: 3.5,
        max: 4,
        share: 0.7,
        waited: 0,
        gflopPerSecond: 2,
        gbPerSecond: undefined,
      },
      {
        op: 'all_gather',
        stream: 'comm',
        calls: 1,
        total: 5,
        mean: 5,
        max: 5,
        share: 0.5,
        waited: 1,
        gflopPerSecond: undefined,
        gbPerSecond: 2,
      },
    ]);
    expect(summary.streams).toEqual([
      { stream: 'compute', busy: 0.7, waitedForStreams: 0.3, waitedForRanks: 0, idle: expect.closeTo(0, 9) },
      { stream: 'comm', busy: 0.4, waitedForStreams: 0, waitedForRanks: 0.1, idle: 0.5 },
    ]);
  });

  it('is text', () => {
    expect(formatTable(summarize(recording()))).toBe(
      [
        'rank 1: 10.0 ms profiled',
        '',
        'op              stream   calls  total ms  of time  mean ms  max ms  waited ms  GFLOP/s  GB/s',
        'linear_forward  compute      2     7.000   70.0 %    3.500   4.000                2.00',
        'all_gather      comm         1     5.000   50.0 %    5.000   5.000      1.000           2.00',
        '',
        'stream     busy  waits for streams  waits for ranks    idle',
        'compute  70.0 %             30.0 %            0.0 %   0.0 %',
        'comm     40.0 %              0.0 %           10.0 %  50.0 %',
        '',
        'exposed communication: 3.0 ms, 30.0 % of the time',
        'JavaScript was ahead of the compute stream by 17.0 ms (median)',
        '4 events were dropped: profile less, or set a higher maxEvents',
        '',
      ].join('\n'),
    );
    expect(formatTable(summarize(recording()), { rowLimit: 1 })).toContain('and 1 more');
  });

  it('survives the way to another rank; a trace aligns the clocks of several', () => {
    const one = recording();
    expect(unpackRecording(packRecording(one))).toEqual(one);
    const other = { ...recording(), rank: 0, startedAt: 3e6 };
    const { traceEvents } = JSON.parse([...chromeTrace([other, one])].join('')) as { traceEvents: TraceEvent[] };
    const gathers = traceEvents.filter(({ name }) => name === 'all_gather layers.1');
    expect(gathers.map(({ pid, ts }) => [pid, ts])).toEqual([
      [0, 12000],
      [1, 14000],
    ]);
    const wait = traceEvents.find(({ cat }) => cat === 'wait')!;
    expect(wait).toMatchObject({ name: 'wait for comm', tid: 1, dur: 3000 });
  });
});
