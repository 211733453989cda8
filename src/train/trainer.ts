// The training loop: one optimizer step after the other, enqueued one ahead of the one whose numbers are read, so that the
// device never waits for JavaScript. What the ranks must agree on (loss, stop request) rides in one small all-reduce.

import { withRandomness } from '../autograd/randomness.ts';
import { span } from '../core/recorder.ts';
import type { Batch } from '../data/batch.ts';
import type { DataLoader, DataStep } from '../data/loader.ts';
import { dist } from '../distributed/index.ts';
import type { CausalLM } from '../models/causal_lm.ts';
import { native } from '../native.ts';
import type { Optimizer } from '../optim/optimizer.ts';
import { type ScheduleName, scheduleFactor } from '../optim/schedule.ts';
import type { FullyShardedDataParallel } from '../parallel/fsdp/fsdp.ts';
import { memoryStats } from '../tensor/memory.ts';
import { scope } from '../tensor/scope.ts';
import { computeDevice, onCommunicationStream } from '../tensor/streams.ts';
import { Tensor } from '../tensor/tensor.ts';
import type { StepRecord } from './reporter.ts';

export interface TrainerOptions {
  fsdp: FullyShardedDataParallel<CausalLM>;
  optimizer: Optimizer;
  /** Of this rank; where it stands is where training goes on. */
  loader: DataLoader;
  /** Of the whole run; the schedule ends here. */
  totalSteps: number;
  /** Taken before, when the run resumes. */
  startStep?: number | undefined;
  /** Peak learning rate. */
  lr: number;
  schedule?: ScheduleName | undefined;
  warmupSteps?: number | undefined;
  /** 0: gradients are not clipped. */
  maxGradNorm?: number | undefined;
  /**
   * Accumulates whole gradients on every rank and reduces them once a step. Default false: each micro-batch is reduced into
   * the gradient shard, which costs one reduce-scatter more and saves a whole copy of the gradients.
   */
  accumulateUnsharded?: boolean | undefined;
}

export interface TrainerHooks {
  /** The numbers of every step, on every rank, in order. */
  onStep?: ((record: StepRecord) => void) | undefined;
  /** Called before step `step` is enqueued. */
  before?: ((step: number) => void) | undefined;
  /** Work that must be done after step `step`, before the next begins; undefined for none. Same answer on every rank. */
  after?: ((step: number, data: DataStep) => (() => Promise<void>) | undefined) | undefined;
  /** Asked once a step; when any rank says true, all stop after the same step. */
  shouldStop?: (() => boolean) | undefined;
}

/** The loss or the gradient norm of a step is not a number. The same on every rank. */
export class NonFiniteError extends Error {
  override name = 'NonFiniteError';
  readonly step: number;

  constructor(step: number, what: string, value: number) {
    super(
      `step ${step}: the ${what} is ${Number.isNaN(value) ? 'NaN' : 'infinite'}; training stopped and nothing was saved from this step on. ` +
        'Try a lower learning rate or a warm-up, and look at the data of this step',
    );
    this.step = step;
  }
}

interface Enqueued {
  step: number;
  data: DataStep;
  learningRate: number;
  /** [loss, share of ranks that want to stop, gradient norm] */
  numbers: Promise<ArrayLike<number | bigint>>;
}

export class Trainer {
  /** Steps done, those before a resume included. */
  step: number;
  /** Tokens trained on in this run, all ranks. */
  tokens = 0;
  private readonly options: TrainerOptions;
  private lastTick = 0;
  private smoothedSeconds: number | undefined;

  constructor(options: TrainerOptions) {
    this.options = options;
    this.step = options.startStep ?? 0;
  }

  /** Trains to the last step, or until a rank wants to stop; true if it was stopped. Collective. */
  async train(hooks: TrainerHooks = {}): Promise<boolean> {
    const { loader, totalSteps } = this.options;
    const steps = loader[Symbol.iterator]();
    this.lastTick = performance.now();
    let earlier: Enqueued | undefined;
    let stop = false;
    while (this.step < totalSteps && !stop) {
      const data = steps.next().value as DataStep;
      const next = this.step + 1;
      hooks.before?.(next);
      const wantsStop = hooks.shouldStop?.() ?? false;
      const current = span(`step ${next}`, '', () => this.enqueue(next, data, wantsStop));
      this.step = current.step;
      const work = hooks.after?.(current.step, data);
      if (earlier) stop = await this.settle(earlier, hooks);
      earlier = current;
      if (!work && !stop && this.step < totalSteps) continue;
      stop = (await this.settle(current, hooks)) || stop;
      earlier = undefined;
      if (!work || stop) continue;
      await work();
      this.lastTick = performance.now();
    }
    return stop;
  }

  /** Everything of a step, without waiting for any of it. */
  private enqueue(step: number, data: DataStep, wantsStop: boolean): Enqueued {
    const { fsdp, optimizer, lr, schedule = 'constant', totalSteps, warmupSteps, maxGradNorm = 0 } = this.options;
    dist.setPhase(`step ${step}`);
    const metrics = Tensor.zeros([3], 'float32', 'other', computeDevice());
    const last = data.microBatches.length - 1;
    for (const [i, batch] of data.microBatches.entries()) {
      const randomness = { step: step - 1, examples: batch.examples };
      const run = (): void => withRandomness(randomness, () => this.forwardBackward(batch, data.numItems, metrics));
      if (this.options.accumulateUnsharded && i < last) fsdp.noSync(run);
      else run();
    }
    using norm = fsdp.clipGradNorm(maxGradNorm > 0 ? maxGradNorm : Number.POSITIVE_INFINITY);
    const learningRate = lr * scheduleFactor(schedule, step - 1, totalSteps, warmupSteps);
    optimizer.lr = learningRate;
    optimizer.step();
    optimizer.zeroGrad();
    write(metrics, 2, norm);
    share(metrics, wantsStop);
    const numbers = metrics.data().finally(() => metrics.dispose());
    numbers.catch(() => {}); // awaited a step later
    return { step, data, learningRate, numbers };
  }

  private forwardBackward(batch: Batch, numItemsInBatch: number, metrics: Tensor): void {
    const { inputIds, labels, cuSeqlens } = batch;
    scope(() => {
      const { loss } = this.options.fsdp.forward({ inputIds, labels, cuSeqlens, numItemsInBatch });
      loss.backward();
      using sum = metrics.slice(0, [1]);
      native.add(sum.handle, sum.handle, loss.handle);
    });
  }

  /** Waits for a step and reports it; true if a rank wants to stop. */
  private async settle(enqueued: Enqueued, hooks: TrainerHooks): Promise<boolean> {
    const { step, data, learningRate, numbers } = enqueued;
    const [loss = 0, wantsStop = 0, gradNorm = 0] = Array.from(
      await span(`await step ${step}`, '', () => numbers),
      Number,
    );
    if (!Number.isFinite(loss)) throw new NonFiniteError(step, 'loss', loss);
    if (!Number.isFinite(gradNorm)) throw new NonFiniteError(step, 'gradient norm', gradNorm);
    const now = performance.now();
    const seconds = (now - this.lastTick) / 1000;
    this.lastTick = now;
    this.smoothedSeconds = this.smoothedSeconds === undefined ? seconds : 0.9 * this.smoothedSeconds + 0.1 * seconds;
    this.tokens += data.numTokens;
    const { totalSteps } = this.options;
    hooks.onStep?.({
      step,
      totalSteps,
      epoch: data.epoch + (data.step + 1) / data.stepsInEpoch,
      loss,
      learningRate,
      gradNorm,
      tokens: data.numTokens,
      tokensPerSecond: data.numTokens / seconds,
      seconds,
      etaSeconds: this.smoothedSeconds * (totalSteps - step),
      memoryBytes: process.memoryUsage.rss(),
      ...deviceMemory(),
    });
    return wantsStop > 0;
  }
}

/** The peaks of this rank on its device. */
export function deviceMemory(): Pick<StepRecord, 'deviceMemoryBytes' | 'deviceReservedBytes'> {
  if (computeDevice() === 'cpu') return {};
  const { totalPeak, reservedPeak } = memoryStats(computeDevice());
  return { deviceMemoryBytes: totalPeak, deviceReservedBytes: reservedPeak };
}

function write(metrics: Tensor, at: number, value: Tensor | number): void {
  using slot = metrics.slice(at, [1]);
  if (typeof value === 'number') native.fill(slot.handle, value);
  else native.copy(slot.handle, value.handle);
}

/** Averages loss and stop requests over the ranks: every rank's loss counts all ranks' labels already. */
function share(metrics: Tensor, wantsStop: boolean): void {
  write(metrics, 1, wantsStop ? 1 : 0);
  const { group } = dist;
  if (group.size === 1) return;
  using head = metrics.slice(0, [2]);
  onCommunicationStream(() => group.allReduce(head.handle, 'avg'));
}
