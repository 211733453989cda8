// Runs adapters that PEFT made on ranks, and judges what they say.
import { join } from 'node:path';
import { expect } from 'vitest';
import { AutoModelForCausalLM } from '../../src/models/auto.ts';
import { noGrad } from '../../src/tensor/grad_mode.ts';
import { referenceTensors, trainingRun } from '../reference/cases.ts';
import { expectRanks, fixture } from './helpers.ts';
import { relative } from './reference_run.ts';

export interface AdapterSettings {
  name: string;
  flow: '0' | 'A' | 'B' | 'C';
  tp?: number;
  degree?: number;
  strategy?: string;
  checkpoint?: boolean;
  sequenceParallel?: boolean;
  device?: 'cuda';
}

interface Result {
  rank: number;
  logitError: number;
  gradErrors: Record<string, number>;
  losses: number[];
  norms: number[];
  digest: string;
  mergedLoss: number;
  buckets: number;
  optimizerNumel: number;
  trainedNumel: number;
  shards: number;
}

/** What each run is told: `all`, and folders in `folder` for what is saved. */
export function adapterJobs(
  folder: string,
  world: number,
  all: readonly AdapterSettings[],
): (AdapterSettings & { out: string })[] {
  return all.map((one, i) => ({
    ...one,
    out: join(folder, `${world}-${i}-${one.name}-${one.flow}-${one.tp ?? 1}`),
  }));
}

/** Runs `all` in one job of `world` ranks, and compares every rank with PEFT. What is saved goes to folders in `folder`. */
export async function expectPeft(
  folder: string,
  world: number,
  all: readonly AdapterSettings[],
  env: Record<string, string> = {},
): Promise<void> {
  const jobs = adapterJobs(folder, world, all);
  const { stdout } = await expectRanks(world, fixture('adapters.mjs'), {
    args: [JSON.stringify(jobs)],
    timeout: 180_000,
    env,
  });
  await judgeAdapters(jobs, stdout);
}

/** Compares what the ranks of a job said, and what they saved, with PEFT. */
export async function judgeAdapters(
  settings: ReturnType<typeof adapterJobs>,
  stdout: readonly string[],
): Promise<void> {
  const byRank = stdout.map((text) =>
    text
      .split('RESULT ')
      .slice(1)
      .map((json) => JSON.parse(json) as Result),
  );
  for (const [i, { name, tp = 1, out }] of settings.entries()) {
    const run = trainingRun(name);
    const results = byRank.map((own) => own[i]!);
    for (const result of results) {
      const what = `${JSON.stringify(settings[i])}, rank ${result.rank}`;
      expect(result.logitError, what).toBeLessThan(1e-5);
      for (const [path, error] of Object.entries(result.gradErrors))
        expect(error, `${what}: ${path}`).toBeLessThan(2e-5);
      expect(result.losses.length).toBe(run.steps);
      for (const [step, loss] of result.losses.entries())
        expect(relative(loss, run.losses[step]!), `${what}: loss ${step}`).toBeLessThan(1e-5);
      for (const [step, norm] of result.norms.entries())
        expect(relative(norm, run.grad_norms[step]!), `${what}: norm ${step}`).toBeLessThan(1e-5);
      expect(result.losses).toEqual(results[0]!.losses);
      expect(result.digest).toBe(results[0]!.digest);
      expect(result.buckets, 'a bucket of trained parameters for each unit that has some').toBeGreaterThan(0);
    }
    const numel = results
      .slice(0, tp * results[0]!.shards)
      .reduce((sum, { optimizerNumel }) => sum + optimizerNumel, 0);
    expect(numel, 'together they have the state of the adapter, and of nothing else').toBeLessThanOrEqual(
      results.slice(0, tp).reduce((sum, { trainedNumel }) => sum + trainedNumel, 0),
    );
    // The merged checkpoint needs no adapter.
    const merged = await AutoModelForCausalLM.fromPretrained(join(out, 'merged'));
    const reference = await referenceTensors(name);
    const [inputIds, labels] = [reference.get('input_ids')!, reference.get('labels')!];
    const alone = noGrad(() => merged.forward({ inputIds, labels })).loss.item();
    expect(relative(alone, results[0]!.mergedLoss)).toBeLessThan(1e-5);
    expect(results[0]!.mergedLoss).toBeLessThan(run.losses.at(-1)!);
  }
}
