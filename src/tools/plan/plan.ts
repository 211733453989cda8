// planRun: what a run would take on each rank, before it takes anything. The training program runs dry in a process of its
// own (measure.ts): no memory, no work, no other ranks, whatever the size of the model.
import { fork } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import type { JsonObject } from '../../core/json.ts';
import type { ModelConfig } from '../../models/config.ts';
import type { FinetuneOptions } from '../../train/options.ts';
import { resolveFinetuneOptions } from '../../train/options.ts';
import type { Measurement } from './measure.ts';
import type { PlanReport } from './report.ts';

/** What to plan. What is left out is as `rankzero finetune` has it. */
export interface PlanOptions
  extends Partial<
    Pick<
      FinetuneOptions,
      | 'precision'
      | 'hybridShardDegree'
      | 'batchSize'
      | 'seqLength'
      | 'gradAccum'
      | 'activationCheckpointing'
      | 'recompute'
      | 'quantize'
      | 'reducePrecision'
      | 'sequenceParallel'
      | 'loraR'
      | 'loraAlpha'
      | 'loraTarget'
      | 'loraDropout'
      | 'loraRslora'
      | 'loraDora'
      | 'loraModulesToSave'
      | 'loraBias'
      | 'optimizer'
      | 'momentum'
    >
  > {
  /** A config, or the content of a config.json. */
  config: ModelConfig | JsonObject;
  worldSize: number;
  /** Hosts, with as many ranks each. Default 1. */
  nnodes?: number | undefined;
  /** What the ranks compute on; no device is needed. Default `cpu`. */
  device?: 'cpu' | 'cuda' | undefined;
  /** The rank to plan. Default 0, which reads the checkpoint for all. */
  rank?: number | undefined;
  tensorParallelDegree?: number | undefined;
  /** Default FULL_SHARD, or HYBRID_SHARD when a hybridShardDegree is given. */
  shardingStrategy?: FinetuneOptions['strategy'] | undefined;
}

/** @internal The answer of the process that runs dry. */
export type Answer = { report: PlanReport } | { error: { name: string; message: string } };

/**
 * The memory and the traffic of one rank. Costs no memory and a second or two. Errors: options that contradict, and degrees
 * that do not divide the ranks or the model, with the nearest ones that do.
 */
export async function planRun({
  config,
  worldSize,
  nnodes = 1,
  device = 'cpu',
  rank = 0,
  tensorParallelDegree = 1,
  shardingStrategy,
  ...rest
}: PlanOptions): Promise<PlanReport> {
  const given = Object.fromEntries(Object.entries(rest).filter(([, value]) => value !== undefined));
  const options = await resolveFinetuneOptions({
    ...given,
    ...unused,
    nproc: worldSize,
    tp: tensorParallelDegree,
    strategy: shardingStrategy ?? impliedStrategy(rest.hybridShardDegree),
  });
  const json = 'raw' in config ? (config as ModelConfig).raw : (config as JsonObject);
  return runDry({ config: json, file: 'config', rank, options, nnodes, device });
}

/** @internal What finetune must be told and a plan has no use for. */
export const unused = { model: 'planned', data: 'planned', out: 'planned' } as const;

/** @internal A degree of shards asks for them. */
export function impliedStrategy(hybridShardDegree: unknown): FinetuneOptions['strategy'] {
  return hybridShardDegree === undefined ? 'FULL_SHARD' : 'HYBRID_SHARD';
}

/** @internal Measures in a process of its own. */
export function runDry(measurement: Measurement): Promise<PlanReport> {
  const { rank, options, nnodes } = measurement;
  if (!Number.isSafeInteger(nnodes) || nnodes < 1 || options.nproc % nnodes !== 0)
    throw new RangeError(`nnodes must divide the ${options.nproc} ranks, got ${nnodes}`);
  if (!Number.isSafeInteger(rank) || rank < 0 || rank >= options.nproc)
    throw new RangeError(`rank must be a whole number from 0 to ${options.nproc - 1}, got ${rank}`);
  const script = fileURLToPath(new URL('./worker.js', import.meta.url));
  const worker = fork(script, { execArgv: [], serialization: 'advanced' });
  return new Promise((resolve, reject) => {
    let answer: Answer | undefined;
    worker.once('message', (message: Answer) => {
      answer = message;
    });
    worker.once('error', reject);
    worker.once('close', (code, signal) => {
      if (!answer) reject(new Error(`the planning process ended by ${signal ?? code}`));
      else if ('report' in answer) resolve(answer.report);
      else reject(Object.assign(new Error(answer.error.message), { name: answer.error.name }));
    });
    worker.send(measurement);
  });
}
