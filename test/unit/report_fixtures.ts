// Records of a run with plausible values, for the tests of reporters.
import type { EvalRecord, RunInfo, RunSummary, StepRecord } from '../../src/train/reporter.ts';

export const runInfo = (fields: Partial<RunInfo> = {}): RunInfo => ({
  model: 'models/tiny',
  modelType: 'llama',
  parameters: 3_148_992,
  trainableParameters: 3_148_992,
  output: 'out',
  worldSize: 2,
  backend: 'shm',
  device: 'cpu',
  deviceReason: 'auto: no GPU',
  trainExamples: 765,
  evalExamples: 85,
  totalSteps: 100,
  startStep: 0,
  options: { data: 'data/train.jsonl', precision: 'float32', strategy: 'FULL_SHARD', lr: 6e-4, seed: 42 },
  ...fields,
});

export const stepRecord = (fields: Partial<StepRecord> = {}): StepRecord => ({
  step: 1,
  totalSteps: 100,
  epoch: 0.03,
  loss: 5.25,
  learningRate: 6e-4,
  gradNorm: 1.5,
  tokens: 1200,
  tokensPerSecond: 4800,
  seconds: 0.25,
  etaSeconds: 25,
  memoryBytes: 180e6,
  ...fields,
});

export const evalRecord = (fields: Partial<EvalRecord> = {}): EvalRecord => ({
  step: 0,
  loss: 6.03,
  perplexity: 415.7,
  tokens: 3000,
  seconds: 1.2,
  ...fields,
});

export const runSummary = (fields: Partial<RunSummary> = {}): RunSummary => ({
  output: 'out',
  steps: 100,
  totalSteps: 100,
  seconds: 30,
  tokens: 120_000,
  interrupted: false,
  ...fields,
});
