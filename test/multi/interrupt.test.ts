// What ends a run early leaves a checkpoint to go on from: Ctrl-C, a killed rank, a full disk.
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { expectFinetune, finetune, workFolder } from './finetune_helpers.ts';

let dir: string;
const options = { maxSteps: 6, batchSize: 2, epochs: 2 };

beforeAll(async () => {
  dir = await workFolder(22);
});
afterAll(() => rm(dir, { recursive: true }));

test('Ctrl-C: the ranks agree on a step, save and end with 130; the run can go on', async () => {
  const first = await finetune(
    2,
    dir,
    { ...options, maxSteps: 200, epochs: 50, out: 'ctrl-c' },
    { sabotage: { kind: 'interrupt', rank: 0, at: 2 } },
  );
  expect(first.code).toBe(130);
  expect(first.failure).toBeUndefined();
  const { steps, interrupted } = first.summary!;
  expect(interrupted).toBe(true);
  expect(steps).toBeGreaterThanOrEqual(3);
  expect(steps).toBeLessThan(12);
  expect(first.checkpoints.map(({ step }) => step)).toEqual([steps]);
  expect(first.steps.at(-1)!.step).toBe(steps);
  expect(first.evals).toEqual([]);
  expect(await readdir(join(dir, 'ctrl-c'))).toEqual([`checkpoint-${steps}`]);
  const rest = await expectFinetune(2, dir, {
    ...options,
    maxSteps: steps + 1,
    epochs: 50,
    out: 'ctrl-c',
    resume: 'auto',
  });
  expect(rest.steps.map(({ step }) => step)).toEqual([steps + 1]);
});

test('SIGTERM while the model is saved: it is saved whole, with a checkpoint from which a run does what is left', async () => {
  const given = { ...options, maxSteps: 2, out: 'at-the-end', samplePrompts: ['Who are you?'] };
  const first = await finetune(2, dir, given, { sabotage: { kind: 'terminate-in-save', rank: 0, at: 1 } });
  expect(first.code).toBe(143);
  expect(first.failure).toBeUndefined();
  expect(first.summary).toMatchObject({ interrupted: true, steps: 2 });
  expect(first.samples.filter(({ step }) => step === 2)).toEqual([]);
  const saved = await readdir(join(dir, given.out));
  expect(saved).toContain('checkpoint-2');
  expect(saved).toContain('model.safetensors');
  const rest = await expectFinetune(2, dir, { ...given, resume: 'auto' });
  expect(rest.steps).toEqual([]);
  expect(rest.samples.map(({ step }) => step)).toEqual([2]);
  expect(rest.summary).toMatchObject({ interrupted: false, steps: 2 });
});

test.each([
  { kind: 'kill-in-load' as const, rank: 1, at: 3, saved: [] },
  { kind: 'kill-in-step' as const, rank: 1, at: 30, saved: [2] }, // nine units a step
  { kind: 'kill-in-step' as const, rank: 0, at: 30, saved: [2] },
  { kind: 'kill-in-save' as const, rank: 1, at: 2, saved: [2] },
  { kind: 'kill-in-save' as const, rank: 0, at: 2, saved: [2] },
])(
  '$kind of rank $rank: an error that names it within 5 s, and what was saved loads',
  async ({ saved, ...sabotage }) => {
    const out = `${sabotage.kind}-${sabotage.rank}`;
    const first = await finetune(2, dir, { ...options, saveSteps: 2, out }, { sabotage });
    const killedAt = Number(/killed at (\d+)/.exec(first.stdout[sabotage.rank]!)![1]);
    expect(Date.now() - killedAt).toBeLessThan(5000);
    expect(first.code).toBe(137);
    expect(first.failure).toMatchObject({ rank: sabotage.rank, message: expect.stringMatching(/SIGKILL/) });
    expect(first.checkpoints.map(({ step }) => step)).toEqual(saved);
    const rest = await expectFinetune(2, dir, { ...options, out, resume: 'auto' });
    expect(rest.start!.startStep).toBe(saved[0] ?? 0);
    expect((await readdir(join(dir, out))).filter((name) => name.includes('checkpoint'))).toEqual(
      saved.map((step) => `checkpoint-${step}`),
    );
  },
);

test('a full disk on one rank: the same error everywhere, and the previous checkpoint loads', async () => {
  // Slow to remove: no rank may give up, and the launcher end rank 0, before the folder is gone.
  const sabotage = { kind: 'full-disk' as const, rank: 1, at: 2, removalTakes: 1500 };
  const first = await finetune(2, dir, { ...options, saveSteps: 2, out: 'full' }, { sabotage });
  expect(first.code).toBe(1);
  expect(first.failure!.message).toMatch(/saving .*checkpoint-4 failed on rank 1: .*(No space left|ENOSPC)/i);
  expect(first.checkpoints.map(({ step }) => step)).toEqual([2]);
  expect(await readdir(join(dir, 'full'))).toEqual(['checkpoint-2']);
  const rest = await expectFinetune(2, dir, { ...options, out: 'full', resume: 'auto' });
  expect(rest.start!.startStep).toBe(2);
});

test('a limit on file sizes is an error, not a signal', async () => {
  const first = await finetune(
    2,
    dir,
    { ...options, maxSteps: 1, saveSteps: 1, out: 'limit' },
    { sabotage: { kind: 'file-limit', rank: 0, at: 1 } },
  );
  expect(first.code).toBe(1);
  expect(first.failure!.message).toMatch(/saving .*checkpoint-1 failed on rank 0: .*(File too large|EFBIG)/i);
  expect(await readdir(join(dir, 'limit'))).toEqual([]);
});
