// Adapters that PEFT made, on real ranks: every division gives PEFT's numbers, whichever rank had the files.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { AutoModelForCausalLM } from '../../src/models/auto.ts';
import { noGrad } from '../../src/tensor/grad_mode.ts';
import { referenceTensors, trainingRun } from '../reference/cases.ts';
import { expectRanks, fixture } from './helpers.ts';
import { relative } from './reference_run.ts';

interface Settings {
  name: string;
  flow: '0' | 'A' | 'B' | 'C';
  tp?: number;
  degree?: number;
  strategy?: string;
  checkpoint?: boolean;
  sequenceParallel?: boolean;
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

const names = ['lora-llama', 'lora-llama-patterns', 'lora-llama-dora', 'lora-gpt-neox', 'lora-mixtral'] as const;

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'rankzero-adapters-'));
});
afterAll(() => rm(folder, { recursive: true }));

async function expectPeft(world: number, all: readonly Settings[]): Promise<void> {
  const settings = all.map((one, i) => ({
    ...one,
    out: join(folder, `${world}-${i}-${one.name}-${one.flow}-${one.tp ?? 1}`),
  }));
  const { stdout } = await expectRanks(world, fixture('adapters.mjs'), {
    args: [JSON.stringify(settings)],
    timeout: 180_000,
  });
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

describe('adapters equal PEFT', () => {
  it('on one rank, in every flow', async () => {
    await expectPeft(1, [
      ...names.map((name): Settings => ({ name, flow: 'A' })),
      { name: 'lora-llama', flow: '0' },
      { name: 'lora-llama', flow: 'C' },
    ]);
  });

  it('on two ranks, sharded', async () => {
    await expectPeft(2, [
      ...names.map((name): Settings => ({ name, flow: 'A' })),
      { name: 'lora-llama-patterns', flow: '0' },
      { name: 'lora-llama', flow: 'A', strategy: 'SHARD_GRAD_OP' },
      { name: 'lora-llama-dora', flow: 'A', strategy: 'NO_SHARD' },
      { name: 'lora-gpt-neox', flow: 'A', checkpoint: true },
    ]);
  });

  it('on two ranks that share each layer', async () => {
    await expectPeft(2, [
      ...names.map((name): Settings => ({ name, flow: 'C', tp: 2 })),
      { name: 'lora-llama', flow: 'B', tp: 2 },
      { name: 'lora-llama-dora', flow: 'C', tp: 2, sequenceParallel: true },
    ]);
  });

  it('on four ranks: two shares of two shards, and four shares', async () => {
    await expectPeft(
      4,
      names.map((name): Settings => ({ name, flow: 'C', tp: 2 })),
    );
    await expectPeft(4, [
      ...names.map((name): Settings => ({ name, flow: 'C', tp: 4 })),
      { name: 'lora-llama', flow: 'B', tp: 4 },
    ]);
    await expectPeft(4, [
      { name: 'lora-llama', flow: 'A', strategy: 'HYBRID_SHARD', degree: 2 },
      { name: 'lora-mixtral', flow: 'A', strategy: '_HYBRID_SHARD_ZERO2', degree: 2 },
    ]);
  });
});
