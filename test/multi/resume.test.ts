// A run that is stopped and resumed is the run that was not stopped: bit for bit on as many ranks, to rounding on others.
import { readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { expectFinetune, type FinetuneResult, finetune, relativeError, workFolder } from './finetune_helpers.ts';

let dir: string;
let whole: FinetuneResult;
// Eleven steps of 4 examples in two epochs of 22; the fourth is in the middle of the first.
const options = { epochs: 2, maxSteps: 7, batchSize: 2, saveTotalLimit: 2 };
const weights = (out: string): Promise<Buffer> => readFile(join(dir, out, 'model.safetensors'));

beforeAll(async () => {
  dir = await workFolder(22);
  whole = await expectFinetune(2, dir, {
    ...options,
    saveSteps: 2,
    out: 'whole',
    evalData: join(dir, 'eval.jsonl'),
    evalAtStart: true,
  });
});
afterAll(() => rm(dir, { recursive: true }));

test('checkpoints come every n steps, and only the newest are kept', async () => {
  expect(whole.checkpoints.map(({ step }) => step)).toEqual([2, 4, 6]);
  await expect(readFile(join(dir, 'whole/checkpoint-2/state.json'))).rejects.toThrow(/ENOENT/);
  const state = JSON.parse(await readFile(join(dir, 'whole/checkpoint-4/state.json'), 'utf8'));
  expect(state).toMatchObject({
    version: 1,
    worldSize: 2,
    shards: 2,
    state: { step: 4, seed: 42, strategy: 'FULL_SHARD' },
  });
});

test('resuming is bit-exact on as many ranks', async () => {
  const resume = join(dir, 'whole/checkpoint-4');
  const rest = await expectFinetune(2, dir, { ...options, resume, out: 'rest', evalData: join(dir, 'eval.jsonl') });
  expect(rest.start).toMatchObject({ startStep: 4, totalSteps: 7 });
  expect(rest.losses).toEqual(whole.losses.slice(4));
  expect(rest.steps.map((s) => s.learningRate)).toEqual(whole.steps.slice(4).map((s) => s.learningRate));
  expect((await weights('rest')).equals(await weights('whole'))).toBe(true);
  expect(rest.evals.at(-1)!.loss).toBe(whole.evals.at(-1)!.loss);
  // The evaluation before the first step is that of the first run.
  expect(rest.summary!.evalBefore!.loss).toBe(whole.evals[0]!.loss);
  expect(rest.notes).toEqual([expect.stringMatching(/^resuming from .*checkpoint-4$/)]);
});

test.each([
  { nproc: 1, batchSize: 4, strategy: 'FULL_SHARD' as const, files: 1 },
  { nproc: 4, batchSize: 1, strategy: 'HYBRID_SHARD' as const, hybridShardDegree: 2, files: 2 },
  { nproc: 2, batchSize: 2, strategy: 'NO_SHARD' as const, files: 1 },
  { nproc: 2, tp: 2, batchSize: 4, strategy: 'FULL_SHARD' as const, files: 2 },
  { nproc: 4, tp: 2, batchSize: 2, strategy: 'FULL_SHARD' as const, sequenceParallel: true, files: 4 },
])('resuming on $nproc ranks with $strategy, tp $tp, and back', async ({ nproc, files, ...layout }) => {
  const out = `rest-${layout.strategy}-${nproc}`;
  const resume = join(dir, 'whole/checkpoint-4');
  const rest = await expectFinetune(nproc, dir, { ...options, ...layout, resume, out, saveSteps: 6 });
  expect(relativeError(rest.losses, whole.losses.slice(4))).toBeLessThan(1e-6);
  // Replicas hold the same, so one of them writes.
  const written = await readdir(join(dir, out, 'checkpoint-6'));
  expect(written.filter((name) => name.startsWith('rank-')).length).toBe(files);
  const back = await expectFinetune(2, dir, { ...options, resume: join(dir, out, 'checkpoint-6'), out: `${out}-back` });
  expect(relativeError(back.losses, whole.losses.slice(6))).toBeLessThan(1e-6);
});

test.each(['adamw8bit', 'adafactor', 'sgd'] as const)(
  '%s resumes, bit for bit and on another number of ranks',
  async (optimizer) => {
    const run = (nproc: number, more: object): Promise<FinetuneResult> =>
      expectFinetune(nproc, dir, { ...options, maxSteps: 4, optimizer, lr: 1e-3, ...more });
    const first = await run(2, { out: optimizer, saveSteps: 2 });
    const resume = join(dir, optimizer, 'checkpoint-2');
    const rest = await run(2, { out: `${optimizer}-rest`, resume });
    expect(rest.losses).toEqual(first.losses.slice(2));
    expect((await weights(`${optimizer}-rest`)).equals(await weights(optimizer))).toBe(true);
    const alone = await run(1, { out: `${optimizer}-alone`, resume, batchSize: 4 });
    expect(relativeError(alone.losses, first.losses.slice(2))).toBeLessThan(optimizer === 'adamw8bit' ? 1e-5 : 1e-6);
  },
);

test('resuming with another optimizer is refused, with both names', async () => {
  const { failure } = await finetune(1, dir, {
    ...options,
    resume: join(dir, 'whole/checkpoint-4'),
    out: 'other-optimizer',
    optimizer: 'adafactor',
  });
  expect(failure?.message).toMatch(/its optimizer state is that of AdamW, and this run has Adafactor/);
});

test("the seed is the one asked for, else the checkpoint's, else that of init, else 42", async () => {
  const run = (own: object, env: Record<string, string> = {}): Promise<FinetuneResult> =>
    expectFinetune(1, dir, { ...options, maxSteps: 1, saveSteps: 1, ...own }, { env });
  const first = await run({ out: 'seed-7', seed: 7 });
  expect(first.start!.options).toMatchObject({ seed: 7 });
  const init = { INIT_SEED: '7' };
  const second = await run({ out: 'seed-init' }, init);
  expect(second.start!.options).toMatchObject({ seed: 7 });
  expect(second.losses).toEqual(first.losses);
  const third = await run({ out: 'seed-5', seed: 5 }, init);
  expect(third.start!.options).toMatchObject({ seed: 5 });
  expect(third.losses).not.toEqual(first.losses);
  expect(whole.start!.options).toMatchObject({ seed: 42 });
  const rest = await run({ out: 'seed-init', resume: 'auto', maxSteps: 2 }, { INIT_SEED: '8' });
  expect(rest.start).toMatchObject({ startStep: 1, options: { seed: 7 } });
  expect(rest.notes).toEqual([
    expect.stringMatching(/^resuming from/),
    'maxSteps was 1 in the checkpoint and is 2 now',
  ]);
});

test('auto takes the newest; without one it starts from the beginning', async () => {
  const fresh = await expectFinetune(2, dir, { ...options, maxSteps: 2, resume: 'auto', saveSteps: 2, out: 'auto' });
  expect(fresh.notes).toEqual([expect.stringMatching(/no checkpoint in .*: starting from the beginning/)]);
  await writeFile(join(dir, 'auto/checkpoint-2.tmp-abc'), 'left by a killed run');
  const rest = await expectFinetune(2, dir, { ...options, maxSteps: 3, resume: 'auto', out: 'auto', lr: 1e-4 });
  expect(rest.steps.map(({ step }) => step)).toEqual([3]);
  expect(rest.notes.join('\n')).toMatch(
    /maxSteps was 2 in the checkpoint and is 3 now\nlr was 0\.0006 .* is 0\.0001 now/,
  );
});

test.each([
  [
    'a file cut short',
    (checkpoint: string) => truncate(join(checkpoint, 'rank-00001-of-00002.safetensors'), 5000),
    /cut short/,
  ],
  [
    'a missing file',
    (checkpoint: string) => rm(join(checkpoint, 'rank-00000-of-00002.safetensors')),
    /rank-00000-of-00002/,
  ],
  ['no state.json', (checkpoint: string) => rm(join(checkpoint, 'state.json')), /not a complete checkpoint/],
  [
    'a broken state.json',
    (checkpoint: string) => truncate(join(checkpoint, 'state.json'), 40),
    /state\.json: not valid JSON/,
  ],
])('%s is an error that names the folder', async (_, damage, message) => {
  await expectFinetune(2, dir, { ...options, maxSteps: 1, saveSteps: 1, out: 'broken' });
  const checkpoint = join(dir, 'broken/checkpoint-1');
  await damage(checkpoint);
  const { code, failure } = await finetune(2, dir, { ...options, resume: checkpoint, out: 'broken' });
  expect(code).toBe(1);
  expect(failure!.message).toMatch(message);
  expect(failure!.message).toContain(checkpoint);
  await rm(join(dir, 'broken'), { recursive: true });
});

test('a checkpoint does not go on with other data', async () => {
  const other = await workFolder(9);
  const resume = join(dir, 'whole/checkpoint-4');
  const { code, failure } = await finetune(2, other, { ...options, resume });
  expect(code).toBe(1);
  expect(failure!.message).toMatch(/numExamples was 22 and is 9/);
  await rm(other, { recursive: true });
});
