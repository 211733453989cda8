// What a fine-tuning run computes does not depend on how it is spread: ranks, accumulation, strategy, packing of ranks.
import { readdir, readFile, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { expectFinetune, type FinetuneResult, finetune, relativeError, workFolder } from './finetune_helpers.ts';

let dir: string;
let alone: FinetuneResult;

beforeAll(async () => {
  dir = await workFolder(22, 7);
  // Four steps of 6, 6, 6 and 4 examples.
  alone = await expectFinetune(1, dir, { batchSize: 6, evalAtStart: true, evalData: join(dir, 'eval.jsonl') });
});
afterAll(() => rm(dir, { recursive: true }));

test('one rank learns, evaluates before and after, and says where it is', () => {
  const { steps, evals, summary, start } = alone;
  expect(steps.map(({ step }) => step)).toEqual([1, 2, 3, 4]);
  expect(steps.map(({ learningRate }) => learningRate)).toEqual(
    [6e-4, 4.5e-4, 3e-4, 1.5e-4].map((x) => expect.closeTo(x, 12)),
  );
  expect(steps.at(-1)).toMatchObject({ totalSteps: 4, epoch: 1 });
  for (const { gradNorm, tokensPerSecond, memoryBytes } of steps) {
    expect(gradNorm).toBeGreaterThan(0);
    expect(tokensPerSecond).toBeGreaterThan(0);
    expect(memoryBytes).toBeGreaterThan(1e7);
  }
  expect(evals.map(({ step }) => step)).toEqual([0, 4]);
  expect(evals[1]!.loss).toBeLessThan(evals[0]!.loss - 0.3);
  expect(start).toMatchObject({
    worldSize: 1,
    backend: 'local',
    totalSteps: 4,
    startStep: 0,
    trainExamples: 22,
    evalExamples: 7,
  });
  expect(summary).toMatchObject({
    steps: 4,
    interrupted: false,
    evalBefore: { loss: evals[0]!.loss },
    evalAfter: { loss: evals[1]!.loss },
  });
  expect(summary!.tokens).toBe(steps.reduce((sum, { tokens }) => sum + tokens, 0));
});

test('the output is a Hugging Face folder', async () => {
  const files = await readdir(join(dir, 'out'));
  expect(files).toEqual(
    expect.arrayContaining(['config.json', 'model.safetensors', 'tokenizer.json', 'chat_template.jinja']),
  );
  const header = (await readFile(join(dir, 'out/model.safetensors'))).subarray(8, 2000).toString();
  expect(header).toContain('"dtype":"BF16"');
});

const equal = (result: FinetuneResult): void => {
  expect(relativeError(result.losses, alone.losses)).toBeLessThan(1e-5);
  expect(
    relativeError(
      result.steps.map((s) => s.gradNorm),
      alone.steps.map((s) => s.gradNorm),
    ),
  ).toBeLessThan(1e-4);
  expect(result.steps.map((s) => s.tokens)).toEqual(alone.steps.map((s) => s.tokens));
  expect(
    relativeError(
      result.evals.map((e) => e.loss),
      alone.evals.map((e) => e.loss),
    ),
  ).toBeLessThan(1e-5);
  expect(result.evals.map((e) => e.tokens)).toEqual(alone.evals.map((e) => e.tokens));
};
const spread = { evalAtStart: true, evalData: '' };

test('two ranks equal one', async () => {
  equal(await expectFinetune(2, dir, { ...spread, evalData: join(dir, 'eval.jsonl'), batchSize: 3, out: 'two' }));
});

test.each([
  { nproc: 2, tp: 2, batchSize: 6 },
  { nproc: 4, tp: 2, batchSize: 3, sequenceParallel: true, activationCheckpointing: true },
])('ranks that share each layer equal one: $nproc ranks, tp $tp', async ({ nproc, ...options }) => {
  const out = `tp-${nproc}`;
  equal(await expectFinetune(nproc, dir, { ...spread, ...options, evalData: join(dir, 'eval.jsonl'), out }));
  const size = async (folder: string): Promise<number> => (await stat(join(dir, folder, 'model.safetensors'))).size;
  expect(await size(out)).toBe(await size('out'));
});

test('accumulation equals a large batch; ranks without examples left take part', async () => {
  equal(
    await expectFinetune(3, dir, {
      ...spread,
      evalData: join(dir, 'eval.jsonl'),
      batchSize: 1,
      gradAccum: 2,
      out: 'three',
    }),
  );
});

test('accumulation without sharding', async () => {
  const options = {
    ...spread,
    evalData: join(dir, 'eval.jsonl'),
    batchSize: 1,
    gradAccum: 3,
    strategy: 'NO_SHARD' as const,
  };
  equal(await expectFinetune(2, dir, { ...options, out: 'no-shard' }));
});

test('activation checkpointing, sample prompts, a limit of steps', async () => {
  const options = {
    activationCheckpointing: true,
    maxSteps: 2,
    samplePrompts: ['Define folly (n.)'],
    evalAtStart: true,
  };
  const { losses, samples, summary } = await expectFinetune(2, dir, {
    ...options,
    batchSize: 3,
    out: 'samples',
    schedule: 'constant',
  });
  expect(losses[0]).toBeCloseTo(alone.losses[0]!, 4);
  expect(summary!.steps).toBe(2);
  expect(samples.map(({ step }) => step)).toEqual([0, 2]);
  for (const { answer } of samples) expect(answer.length).toBeGreaterThan(10);
});

test('packed rows, without clipping, on every token', async () => {
  const options = { packing: true, seqLength: 128, maxGradNorm: 0, lossOn: 'all' as const, warmupSteps: 2 };
  const one = await expectFinetune(1, dir, { ...options, batchSize: 2, out: 'packed-1' });
  const two = await expectFinetune(2, dir, { ...options, batchSize: 1, out: 'packed-2' });
  expect(one.steps[0]!.tokens).toBeGreaterThan(200);
  expect(one.losses.length).toBeGreaterThan(3);
  expect(relativeError(two.losses, one.losses)).toBeLessThan(1e-5);
});

test('bfloat16 learns as float32 does', async () => {
  const { losses } = await expectFinetune(2, dir, { precision: 'bfloat16', batchSize: 3, out: 'bf16' });
  expect(relativeError(losses, alone.losses)).toBeLessThan(0.02);
});

test('a loss that is not a number stops the run and names the step', async () => {
  const { code, failure, checkpoints, steps } = await finetune(2, dir, {
    lr: 1e30,
    batchSize: 3,
    schedule: 'constant',
    saveSteps: 1,
    out: 'nan',
  });
  expect(code).toBe(1);
  expect(failure?.message).toMatch(/^step [2-4]: the (loss|gradient norm) is (NaN|infinite); training stopped/);
  expect(steps.every(({ loss }) => Number.isFinite(loss))).toBe(true);
  expect(checkpoints.length).toBe(steps.length);
  expect(await readdir(join(dir, 'nan'))).not.toContain('model.safetensors');
});
