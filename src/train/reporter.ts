// What a training run tells its observers: the terminal, metrics.jsonl, TensorBoard, report.html, or a user's own.
// Only rank 0 reports. Calls are synchronous and in the order of the run:
//   onStart, onLoad*, (onEval | onSample)*, (onStep | onEval | onSample | onProfile | onCheckpoint | onNote)*, onEnd.
// Sizes are bytes, times are seconds, counts of tokens are over all ranks unless said otherwise.
import type { Profile, SavedProfile } from '../profile/profile.ts';

/** Progress of loading and sharding the weights, over the whole model. */
export interface LoadProgress {
  bytes: number;
  totalBytes: number;
  /** Since loading began. */
  seconds: number;
}

/** One optimizer step. */
export interface StepRecord {
  /** The first step is 1. */
  step: number;
  totalSteps: number;
  /** Passes over the data so far; fractional. */
  epoch: number;
  /** Mean over the target tokens of the step, all ranks. */
  loss: number;
  learningRate: number;
  /** Global norm before clipping. */
  gradNorm: number;
  /** Tokens of this step, all ranks. */
  tokens: number;
  /** All ranks together. */
  tokensPerSecond: number;
  /** Wall time of this step. */
  seconds: number;
  etaSeconds: number;
  /** Resident memory of this rank. */
  memoryBytes: number;
  /** Highest so far that tensors of this rank took of its GPU; absent on the CPU. */
  deviceMemoryBytes?: number | undefined;
  /** Highest so far that this rank held of its GPU, cached blocks included; absent on the CPU. */
  deviceReservedBytes?: number | undefined;
}

/** One pass over the evaluation data. */
export interface EvalRecord {
  /** Optimizer steps taken before it; 0 is the model as loaded. */
  step: number;
  /** Mean over the target tokens of the evaluation data. */
  loss: number;
  perplexity: number;
  /** Target tokens that the mean is over. */
  tokens: number;
  seconds: number;
}

/** An answer of the model to a sample prompt. */
export interface SampleRecord {
  /** Optimizer steps taken before it; 0 is the model as loaded. */
  step: number;
  prompt: string;
  answer: string;
}

/** What is known before the weights are loaded. */
export interface RunInfo {
  /** The folder or hub id that was asked for. */
  model: string;
  /** `model_type` of its config, such as `llama`. */
  modelType: string;
  /** Parameters of the whole model. */
  parameters: number;
  /** Those of them that are trained; the others are frozen. */
  trainableParameters: number;
  output: string;
  worldSize: number;
  /** What carries tensors between ranks: `shm`, `nccl`, or `local` for a world of one. */
  backend: string;
  /** What the ranks compute on. */
  device: 'cpu' | 'cuda';
  /** Why, and which GPU. */
  deviceReason: string;
  trainExamples: number;
  evalExamples: number;
  totalSteps: number;
  /** Steps already taken, when the run resumes; else 0. */
  startStep: number;
  /** The options of the run, as validated. */
  options: Readonly<Record<string, unknown>>;
}

/** How a run ended. */
export interface RunSummary {
  output: string;
  /** Steps taken in total, those before a resume included. */
  steps: number;
  totalSteps: number;
  /** Wall time of this run from `onStart`. */
  seconds: number;
  /** Tokens trained on in this run, all ranks. */
  tokens: number;
  /** The evaluation before the first step, where there was one. */
  evalBefore?: EvalRecord | undefined;
  /** The last evaluation, if any step came before it. */
  evalAfter?: EvalRecord | undefined;
  /** Highest resident memory seen on rank 0. */
  peakMemoryBytes?: number | undefined;
  /** As in the last step's record; absent on the CPU. */
  peakDeviceMemoryBytes?: number | undefined;
  /** As in the last step's record; absent on the CPU. */
  peakDeviceReservedBytes?: number | undefined;
  /** True after Ctrl-C or SIGTERM: the state was saved and the run can resume. */
  interrupted: boolean;
}

/** A profile of some steps was written. */
export interface ProfileRecord {
  /** The steps, both included. */
  first: number;
  last: number;
  files: SavedProfile;
  /** Of rank 0. */
  profile: Profile;
}

/** An observer of a run. Every method is optional; an error thrown by one ends the run. */
export interface Reporter {
  onStart?(info: RunInfo): void;
  onLoad?(progress: LoadProgress): void;
  onStep?(record: StepRecord): void;
  onEval?(record: EvalRecord): void;
  onSample?(record: SampleRecord): void;
  /** Something a person should know: a fallback, an option that has no effect here. */
  onNote?(message: string): void;
  onProfile?(record: ProfileRecord): void;
  /** A checkpoint is complete on disk. */
  onCheckpoint?(dir: string, step: number): void;
  onEnd?(summary: RunSummary): void;
}

/** One reporter that tells each of `reporters` in turn. */
export function combineReporters(reporters: readonly Reporter[]): Reporter {
  const each = (tell: (reporter: Reporter) => void): void => {
    for (const reporter of reporters) tell(reporter);
  };
  return {
    onStart: (info) => each((r) => r.onStart?.(info)),
    onLoad: (progress) => each((r) => r.onLoad?.(progress)),
    onStep: (record) => each((r) => r.onStep?.(record)),
    onEval: (record) => each((r) => r.onEval?.(record)),
    onSample: (record) => each((r) => r.onSample?.(record)),
    onNote: (message) => each((r) => r.onNote?.(message)),
    onProfile: (record) => each((r) => r.onProfile?.(record)),
    onCheckpoint: (dir, step) => each((r) => r.onCheckpoint?.(dir, step)),
    onEnd: (summary) => each((r) => r.onEnd?.(summary)),
  };
}
