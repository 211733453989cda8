// What a run saves beside weights and optimizer state, so that it can go on as if it had not stopped.

import { describe, isObject, type JsonObject } from '../core/json.ts';
import type { DataLoader, DataLoaderState } from '../data/loader.ts';
import type { FinetuneOptions } from './options.ts';
import type { EvalRecord } from './reporter.ts';

export interface TrainState {
  /** Id of the run; resumed runs keep it. */
  run: string;
  /** Optimizer steps done. */
  step: number;
  epoch: number;
  seed: number;
  worldSize: number;
  strategy: string;
  data: DataLoaderState;
  evalBefore: EvalRecord | null;
  options: FinetuneOptions;
}

/** Checks what a checkpoint says; `dir` is for the message. */
export function parseTrainState(state: JsonObject, dir: string): TrainState {
  const { run, step, data, options } = state;
  const ok = typeof run === 'string' && Number.isSafeInteger(step) && isObject(data) && isObject(options);
  if (!ok) {
    const keys = Object.keys(state).join(', ') || 'nothing';
    throw new Error(
      `${dir}: this checkpoint was not saved by finetune: its state has ${keys}; step is ${describe(step)}`,
    );
  }
  return state as unknown as TrainState;
}

// Options that change what the steps compute; with others a resumed run is still the same run.
const decisive: readonly (keyof FinetuneOptions)[] = [
  'model',
  'data',
  'epochs',
  'maxSteps',
  'batchSize',
  'gradAccum',
  'nproc',
  'tp',
  'seqLength',
  'packing',
  'lossOn',
  'lr',
  'schedule',
  'warmupSteps',
  'warmupRatio',
  'weightDecay',
  'betas',
  'eps',
  'momentum',
  'dampening',
  'nesterov',
  'beta2Decay',
  'clipThreshold',
  'maxGradNorm',
  'loraR',
  'loraAlpha',
  'loraTarget',
  'loraDropout',
  'loraRslora',
  'loraDora',
  'loraModulesToSave',
  'loraBias',
  'adapter',
  'quantize',
  'precision',
  'strategy',
  'seed',
];

/** A sentence for each option that differs from the checkpoint's in a way that changes the training. */
export function changedOptions(before: FinetuneOptions, now: FinetuneOptions): string[] {
  const show = (value: unknown): string => (value === undefined ? 'nothing' : JSON.stringify(value));
  return decisive
    .filter((key) => show(before[key]) !== show(now[key]))
    .map((key) => `${key} was ${show(before[key])} in the checkpoint and is ${show(now[key])} now`);
}

/** Steps of the whole run, when `done` steps are behind and the loader stands where they ended. */
export function totalSteps(
  loader: DataLoader,
  options: Pick<FinetuneOptions, 'epochs' | 'maxSteps'>,
  done: number,
): number {
  if (options.maxSteps !== undefined) return options.maxSteps;
  const { epoch, step } = loader.state();
  // In steps of today's batch size, which may not be the one that the run began with.
  const behind = loader.totalSteps(epoch) + step;
  return done + Math.max(0, loader.totalSteps(options.epochs) - behind);
}
