// Small fine-tuning runs on ranks: their options, and what rank 0 reported.
import { mkdtemp, readFile, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { FinetuneOptions } from '../../src/train/options.ts';
import type { EvalRecord, RunInfo, RunSummary, StepRecord } from '../../src/train/reporter.ts';
import { fixture, type RanksOptions, type RanksResult, runRanks } from './helpers.ts';

const examples = join(import.meta.dirname, '../../examples');

export interface Sabotage {
  kind:
    | 'kill-in-load'
    | 'kill-in-step'
    | 'kill-in-save'
    | 'terminate-in-save'
    | 'full-disk'
    | 'file-limit'
    | 'interrupt';
  rank: number;
  /** Number of the native call, of the file or of the step. */
  at: number;
  /** Milliseconds that every removal of a folder takes longer, on every rank. */
  removalTakes?: number;
}

export interface FinetuneResult extends RanksResult {
  start: RunInfo | undefined;
  steps: StepRecord[];
  losses: number[];
  evals: EvalRecord[];
  notes: string[];
  checkpoints: { dir: string; step: number }[];
  samples: { prompt: string; answer: string; step: number }[];
  summary: RunSummary | undefined;
}

/** A fresh folder with `train.jsonl` and `eval.jsonl`, the first lines of the example data. */
export async function workFolder(trainLines = 24, evalLines = 7): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), 'finetune-'));
  for (const [name, lines] of [
    ['train', trainLines],
    ['eval', evalLines],
  ] as const) {
    const text = await readFile(join(examples, `data/devils-dictionary.${name}.jsonl`), 'utf8');
    await writeFile(join(dir, `${name}.jsonl`), text.split('\n').slice(0, lines).join('\n'));
  }
  return dir;
}

/** Runs the example model on the data of `dir`; `out` is a folder in it. */
export async function finetune(
  nproc: number,
  dir: string,
  options: Partial<FinetuneOptions>,
  { sabotage, ...ranks }: RanksOptions & { sabotage?: Sabotage } = {},
): Promise<FinetuneResult> {
  const all = {
    model: join(examples, 'moby-llama'),
    data: join(dir, 'train.jsonl'),
    nproc,
    device: 'cpu',
    epochs: 1,
    batchSize: 4,
    lr: 6e-4,
    schedule: 'linear',
    evalAtStart: false,
    ...options,
    out: join(dir, options.out ?? 'out'),
  };
  const result = await runRanks(nproc, fixture('finetune.mjs'), {
    ...ranks,
    args: [JSON.stringify(all)],
    env: { ...ranks.env, ...(sabotage ? { SABOTAGE: JSON.stringify(sabotage) } : {}) },
  });
  const events = result.stdout[0]!.split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line) as { kind: string });
  const of = <T>(kind: string): T[] => events.filter((event) => event.kind === kind) as T[];
  const steps = of<StepRecord>('step');
  return {
    ...result,
    start: of<RunInfo>('start')[0],
    steps,
    losses: steps.map(({ loss }) => loss),
    evals: of('eval'),
    notes: of<{ message: string }>('note').map(({ message }) => message),
    checkpoints: of('checkpoint'),
    samples: of('sample'),
    summary: of<RunSummary>('summary')[0],
  };
}

/** As finetune(), but fails with all that was said unless the job ended well. */
export async function expectFinetune(...args: Parameters<typeof finetune>): Promise<FinetuneResult> {
  const result = await finetune(...args);
  if (result.code !== 0 || !result.summary) {
    throw new Error(
      `exit code ${result.code}: ${JSON.stringify(result.failure)}\n${result.stderr.join('')}${result.stdout.join('')}`,
    );
  }
  return result;
}

/** The largest difference relative to the expected values. */
export function relativeError(got: readonly number[], expected: readonly number[]): number {
  if (got.length !== expected.length) return Number.POSITIVE_INFINITY;
  return Math.max(0, ...got.map((x, i) => Math.abs(x - expected[i]!) / Math.abs(expected[i]!)));
}
