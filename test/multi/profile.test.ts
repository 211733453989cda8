// `rankzero finetune --profile`: two ranks fine-tune the example model; the trace holds exactly the steps that were asked for,
// of both ranks, and training is the same bits as without it.
import { readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { TraceEvent } from '../../src/profile/trace.ts';
import { expectFinetune, type FinetuneResult, finetune, workFolder } from './finetune_helpers.ts';
import { runProcess } from './helpers.ts';

const root = join(import.meta.dirname, '../..');
const model = join(root, 'examples/moby-llama');
const layers = 6;
const steps = 3;
const units = [
  'model.embed_tokens',
  ...Array.from({ length: layers }, (_, i) => `model.layers.${i}`),
  'root',
  'lm_head',
];

let dir: string;
let without: FinetuneResult;
let profiled: FinetuneResult;
let events: TraceEvent[];

beforeAll(async () => {
  dir = await workFolder(48);
  without = await expectFinetune(2, dir, { out: 'without', batchSize: 4 });
  profiled = await expectFinetune(2, dir, { out: 'with', batchSize: 4, profile: join(dir, 'new/profile') });
  events = JSON.parse(await readFile(join(dir, 'new/profile/trace.json'), 'utf8')).traceEvents;
});
afterAll(() => rm(dir, { recursive: true }));

const tracksOf = (rank: number): Map<string, number> =>
  new Map(
    events
      .filter(({ name, pid }) => name === 'thread_name' && pid === rank)
      .map(({ args, tid }) => [args!.name as string, tid]),
  );
const slices = (rank: number, track: string): TraceEvent[] =>
  events.filter(({ ph, pid, tid }) => ph === 'X' && pid === rank && tid === tracksOf(rank).get(track));

test('losses are the same bits', () => {
  expect(profiled.steps.length).toBe(6);
  expect(profiled.losses).toEqual(without.losses);
  expect(profiled.steps.map(({ gradNorm }) => gradNorm)).toEqual(without.steps.map(({ gradNorm }) => gradNorm));
});

test.each([0, 1])('rank %i has its tracks, and slices of a stream follow one another', (rank) => {
  expect([...tracksOf(rank).keys()].slice(0, 3)).toEqual(['JavaScript', 'compute', 'comm']);
  for (const track of ['compute', 'comm']) {
    const all = slices(rank, track).sort((a, b) => a.ts! - b.ts!);
    expect(all.length).toBeGreaterThan(20);
    for (const [i, { ts }] of all.slice(1).entries()) {
      expect(ts!).toBeGreaterThanOrEqual(all[i]!.ts! + all[i]!.dur! - 0.001);
    }
  }
});

test.each([0, 1])('rank %i: three steps, no less and no more', (rank) => {
  const count = (track: string, name: string): number => slices(rank, track).filter((s) => s.name === name).length;
  const parts = slices(rank, 'JavaScript').map(({ name }) => name);
  expect(parts.filter((name) => /^step /.test(name))).toEqual(['step 3', 'step 4', 'step 5']);
  // q, k, v, o, gate, up, down of each layer; the head is in the loss.
  expect(count('compute', 'linear_forward')).toBe(7 * layers * steps);
  expect(count('compute', 'linear_backward_weight')).toBe(7 * layers * steps);
  expect(count('compute', 'linear_cross_entropy')).toBe(steps);
  expect(count('compute', 'adamw')).toBe(units.length * steps);
  for (const unit of units) {
    expect(count('comm', `all_gather ${unit}`), unit).toBe(steps);
    expect(count('comm', `reduce_scatter ${unit}`), unit).toBe(steps);
    expect(count('JavaScript', `forward ${unit}`), unit).toBe(steps);
  }
  expect(count('JavaScript', 'backward model.layers.3')).toBe(steps);
  expect(count('JavaScript', 'optimizer')).toBe(steps);
  expect(count('JavaScript', 'await step 3')).toBe(1);
});

test('parts of the program nest', () => {
  const open: TraceEvent[] = [];
  const parts = slices(0, 'JavaScript').sort((a, b) => a.ts! - b.ts! || b.dur! - a.dur!);
  for (const part of parts) {
    while (open.length > 0 && open.at(-1)!.ts! + open.at(-1)!.dur! <= part.ts! + 0.001) open.pop();
    const outer = open.at(-1);
    if (outer)
      expect(part.ts! + part.dur!, `${part.name} in ${outer.name}`).toBeLessThanOrEqual(outer.ts! + outer.dur! + 0.001);
    open.push(part);
  }
  const layer = parts.find(({ name }) => name === 'backward model.layers.3')!;
  const backward = parts.find(({ name }) => name === 'backward')!;
  expect(layer.ts! - backward.ts!).toBeGreaterThan(0);
});

test('waits are waits, and a product knows its sizes', () => {
  const waits = slices(0, 'compute').filter(({ cat }) => cat === 'wait');
  expect(new Set(waits.map(({ name }) => name))).toContain('wait for comm');
  const product = slices(1, 'compute').find(({ name }) => name === 'linear_forward')!;
  expect(product.args).toMatchObject({
    in: 'forward model.layers.0',
    in_features: 192,
    out_features: 192,
    dtype: 'float32',
    gflop_per_s: expect.any(Number),
  });
});

test('the tables of both ranks are beside it', async () => {
  const table = await readFile(join(dir, 'new/profile/profile.txt'), 'utf8');
  expect(table).toMatch(/^rank 0: [\d.]+ ms profiled/);
  expect(table).toMatch(/^rank 1: /m);
  expect(table.match(/^linear_forward +compute +126 /gm)?.length).toBe(2);
  expect(table).toMatch(/exposed communication: [\d.]+ ms, [\d.]+ % of the time/);
  expect(table).not.toContain('dropped');
});

const cli = (...flags: string[]): ReturnType<typeof runProcess> =>
  runProcess(
    [join(root, 'dist/cli/main.js'), 'finetune', '--model', model, '--data', join(dir, 'train.jsonl')]
      .concat(['--out', join(dir, 'cli'), '--nproc', '2', '--max-steps', '2'])
      .concat(flags),
    {},
  );

test('a folder that cannot be is an error before anything starts', async () => {
  await writeFile(join(dir, 'file'), 'x');
  const { code, stderr, stdout } = await cli('--profile', join(dir, 'file', 'below'));
  expect(code).toBe(1);
  expect(stderr).toBe(`rankzero: --profile: not a folder: ${join(dir, 'file')}\n`);
  expect(stdout).toBe('');
});

test('steps that the run does not do are an error before the weights are read', async () => {
  const { code, failure, steps } = await finetune(2, dir, {
    out: 'none',
    maxSteps: 4,
    profile: join(dir, 'none'),
    profileSteps: '4-6',
  });
  expect(code).toBe(1);
  expect(failure?.message).toBe('--profile-steps 4-6: this run does the steps 1 to 4');
  expect(steps).toEqual([]);
});

test('the command profiles what there is of a short run, and shows the table', async () => {
  const { code, stdout, stderr } = await cli('--profile', join(dir, 'short'), '--batch-size', '2');
  expect(code, stderr).toBe(0);
  expect(stdout).toContain('profile  steps 1 to 2: ');
  expect(stderr).toMatch(/linear_forward +compute +84 /);
});
