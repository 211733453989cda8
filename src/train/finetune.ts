// A fine-tuning run from options to a saved model, as `rankzero finetune` runs it on every rank.
import { randomBytes } from 'node:crypto';
import { saveAdapter } from '../adapt/files.ts';
import { ownsFolder } from '../checkpoint/host_folders.ts';
import { loadShardedCheckpoint, saveShardedCheckpoint } from '../checkpoint/sharded.ts';
import { readManifest } from '../checkpoint/sharded-reader.ts';
import { copyCompanions } from '../checkpoint/source.ts';
import type { JsonObject } from '../core/json.ts';
import { fromRank0, onAllRanks } from '../distributed/agree.ts';
import { type SelectedDevice, selectDevice } from '../distributed/compute_device.ts';
import { reportStop, type StopSignal } from '../distributed/failure.ts';
import { dist } from '../distributed/index.ts';
import { init } from '../distributed/state.ts';
import type { CausalLM } from '../models/causal_lm.ts';
import { AutoConfig, type ModelConfig } from '../models/config.ts';
import type { Optimizer } from '../optim/optimizer.ts';
import { numParameters } from '../parallel/delayed_param.ts';
import type { FullyShardedDataParallel } from '../parallel/fsdp/fsdp.ts';
import { givenSeed, seedRun } from '../tensor/random.ts';
import { checkpointDir, cleanLeftovers, findCheckpoint, pruneCheckpoints } from './checkpoints.ts';
import { evaluate } from './evaluate.ts';
import { findInputs } from './inputs.ts';
import { Interrupt } from './interrupt.ts';
import { buildModel, type ResumedFrom, trainsAdapter, wrapModel } from './model.ts';
import { makeOptimizer } from './optimizer.ts';
import type { FinetuneOptions, RunOptions } from './options.ts';
import type { EvalRecord, Reporter, RunSummary } from './reporter.ts';
import { answer } from './samples.ts';
import { StepProfiler } from './step_profiler.ts';
import { loadTrainData, type TrainData } from './train_data.ts';
import { changedOptions, parseTrainState, type TrainState, totalSteps } from './train_state.ts';
import { deviceMemory, Trainer } from './trainer.ts';

/**
 * Fine-tunes a model. Every rank calls it with the same options; the reporter of rank 0 hears of it. Joins the job if this
 * process has not, and leaves it again then. After Ctrl-C or SIGTERM on any rank the result says `interrupted`, a checkpoint
 * is saved and `process.exitCode` is 130 or 143. Errors: wrong files and data, a loss that is not a number, a rank that died, a full disk.
 */
export async function runFinetune(options: FinetuneOptions, reporter: Reporter = {}): Promise<RunSummary> {
  const joins = !dist.isInitialized();
  await dist.initProcessGroup();
  const run = await Run.prepare(options, dist.getRank() === 0 ? reporter : {});
  const summary = await run.execute();
  if (joins) dist.destroyProcessGroup();
  if (run.stoppedBy) {
    process.exitCode = run.stoppedBy === 'SIGTERM' ? 143 : 130;
    reportStop(run.stoppedBy);
  }
  return summary;
}

interface Prepared {
  options: RunOptions;
  device: SelectedDevice;
  reporter: Reporter;
  config: ModelConfig;
  dir: string;
  data: TrainData;
  /** Whether this rank cleans the output folder of its host. */
  ownsOut: boolean;
  /** The training checkpoint to go on from. */
  resume: ResumedFrom | undefined;
  /** Where the run stands. */
  state: TrainState;
  profiler: StepProfiler | undefined;
}

/** One run on one rank. */
class Run {
  /** What ended the training early, the same on every rank; the state is saved then. */
  stoppedBy: StopSignal | undefined;
  private readonly prepared: Prepared;
  private readonly started = performance.now();
  private fsdp!: FullyShardedDataParallel<CausalLM>;
  private optimizer!: Optimizer;
  private trainer!: Trainer;
  private lastEval: EvalRecord | undefined;
  private lastSaved: number | undefined;

  private constructor(prepared: Prepared) {
    this.prepared = prepared;
  }

  /** Everything that can go wrong before a weight is read. */
  static async prepare(given: FinetuneOptions, reporter: Reporter): Promise<Run> {
    dist.setPhase('prepare');
    if (given.quantize && !trainsAdapter(given))
      throw new Error(
        'quantize: a quantised base is frozen, and is not saved; train an adapter on it (loraR, or adapter)',
      );
    const device = selectDevice(given.device);
    if (given.tp > 1) init({ tensorParallelDegree: given.tp });
    const inputs = await findInputs(given);
    const { dir } = inputs;
    const config = await AutoConfig.fromPretrained(dir);
    const skipped: string[] = [];
    const ownsOut = await ownsFolder(given.out);
    await onAllRanks(dist.group, 'starting', async () => void (ownsOut && (await cleanLeftovers(given.out))));
    const start = await fromRank0(dist.group, 'starting', async () => {
      const resume = (await findCheckpoint(given.out, given.resume, (why) => skipped.push(why))) ?? null;
      return { resume, seed: given.seed ?? null, otherwise: defaultSeed() };
    });
    const resume = start.resume ?? undefined;
    const manifest =
      resume === undefined ? undefined : await fromRank0(dist.group, 'resuming', () => readManifest(resume));
    const saved = manifest && parseTrainState(manifest.state, resume!);
    const options = { ...given, seed: start.seed ?? saved?.seed ?? start.otherwise };
    const data = await loadTrainData(inputs, config, options);
    data.notes.push(...skipped.map((why) => `skipped: ${why}`));
    const state = await startState(options, resume, saved, data);
    const total = totalSteps(data.train, options, state.step);
    const profiler = await StepProfiler.prepare(options, state.step, total, (record) => reporter.onProfile?.(record));
    seedRun(options.seed);
    const from = manifest && { dir: resume!, ties: manifest.ties };
    return new Run({ options, device, reporter, config, dir, ownsOut, data, resume: from, state, profiler });
  }

  async execute(): Promise<RunSummary> {
    const { options, reporter, data, state } = this.prepared;
    const total = totalSteps(data.train, options, state.step);
    await this.load(total);
    if (options.evalAtStart && state.step === 0) {
      await this.evaluate(0);
      state.evalBefore = this.lastEval ?? null;
      await this.sample(0);
    }
    await this.trainAndSave(total);
    if (!this.stoppedBy) await this.finish();
    const { step, tokens } = this.trainer;
    const { deviceMemoryBytes, deviceReservedBytes } = deviceMemory();
    const summary: RunSummary = {
      output: options.out,
      steps: step,
      totalSteps: total,
      seconds: (performance.now() - this.started) / 1000,
      tokens,
      evalBefore: state.evalBefore ?? undefined,
      evalAfter: this.lastEval && this.lastEval.step > 0 ? this.lastEval : undefined,
      peakMemoryBytes: process.resourceUsage().maxRSS * 1024,
      peakDeviceMemoryBytes: deviceMemoryBytes,
      peakDeviceReservedBytes: deviceReservedBytes,
      interrupted: this.stoppedBy !== undefined,
    };
    reporter.onEnd?.(summary);
    return summary;
  }

  private async load(total: number): Promise<void> {
    const { options, device, reporter, config, dir, data, resume, state } = this.prepared;
    dist.setPhase('load');
    const model = await buildModel(dir, config, options, resume);
    const { group } = dist;
    reporter.onStart?.({
      model: options.model,
      modelType: config.modelType,
      parameters: numParameters(model),
      trainableParameters: numParameters(model, ({ requiresGrad }) => requiresGrad),
      output: options.out,
      worldSize: group.size,
      backend: dist.getBackend(),
      device: device.device,
      deviceReason: device.reason,
      trainExamples: data.train.dataset.length,
      evalExamples: data.eval?.dataset.length ?? 0,
      totalSteps: total,
      startStep: state.step,
      options: { ...options },
    });
    for (const note of data.notes) reporter.onNote?.(note);
    const onLoad: NonNullable<Reporter['onLoad']> = ({ bytes, totalBytes, seconds }) =>
      reporter.onLoad?.({ bytes, totalBytes, seconds });
    this.fsdp = wrapModel(model, options, resume, onLoad);
    this.optimizer = makeOptimizer(this.fsdp.namedParameters(), options);
    if (resume !== undefined) {
      await loadShardedCheckpoint(resume.dir, this.fsdp, this.optimizer, { onProgress: onLoad });
      this.lastSaved = state.step;
    }
    this.trainer = new Trainer({
      fsdp: this.fsdp,
      optimizer: this.optimizer,
      loader: data.train,
      totalSteps: total,
      startStep: state.step,
      lr: options.lr,
      schedule: options.schedule,
      warmupSteps: options.warmupSteps ?? Math.ceil(options.warmupRatio * total),
      maxGradNorm: options.maxGradNorm,
      // Without sharding every rank has a whole gradient anyway.
      accumulateUnsharded: options.strategy === 'NO_SHARD',
    });
  }

  private async trainAndSave(total: number): Promise<void> {
    using interrupt = new Interrupt((signal) => {
      const goesOn = this.trainer.step < total ? 'saving after this step' : 'stopping when the model is saved';
      const [name, how] = signal === 'SIGINT' ? ['Ctrl-C', '; press it again to stop at once'] : [signal, ''];
      this.prepared.reporter.onNote?.(`${name}: ${goesOn}${how}`);
    });
    await this.train(interrupt);
    if (!this.stoppedBy) await this.saveModel(interrupt);
  }

  private async train(interrupt: Interrupt): Promise<void> {
    const { options, reporter, data } = this.prepared;
    using profiler = this.prepared.profiler;
    const stopped = await this.trainer.train({
      before: (step) => profiler?.before(step),
      shouldStop: () => interrupt.requested !== undefined,
      onStep: (record) => {
        const { step, totalSteps: total } = record;
        if (step % options.logSteps === 0 || step === total) reporter.onStep?.(record);
      },
      after: (step, { step: inEpoch, stepsInEpoch }) => {
        const every = options.evalSteps;
        const evaluates = data.eval && (every ? step % every === 0 : inEpoch + 1 === stepsInEpoch);
        const saves = options.saveSteps && step % options.saveSteps === 0;
        const profiled = profiler?.after(step);
        if (!evaluates && !saves && !profiled) return undefined;
        return async () => {
          await profiled?.();
          if (saves) await this.save();
          if (evaluates) await this.evaluate(step);
          dist.setPhase('train');
        };
      },
    });
    await profiler?.finish(this.trainer.step);
    if (!stopped) return;
    this.stoppedBy = interrupt.agreed(dist.group);
    await this.save();
  }

  private async saveModel(interrupt: Interrupt): Promise<void> {
    dist.setPhase('save');
    const { options, dir } = this.prepared;
    if (trainsAdapter(options)) {
      await saveAdapter(this.fsdp, options.out);
      // So that the folder answers in the format that it was trained in.
      await onAllRanks(dist.group, `saving ${options.out}`, async () => {
        if (dist.getRank() === 0) await copyCompanions({ dir }, options.out);
      });
    } else await this.fsdp.savePretrained(options.out);
    this.stoppedBy = interrupt.agreed(dist.group);
    if (this.stoppedBy) await this.save(); // so that --resume does what is left
  }

  /** What takes long and can be repeated, when the model is saved. */
  private async finish(): Promise<void> {
    const { step } = this.trainer;
    if (this.lastEval?.step !== step) await this.evaluate(step);
    await this.sample(step);
  }

  private async evaluate(step: number): Promise<void> {
    const { data, reporter } = this.prepared;
    if (!data.eval) return;
    dist.setPhase('evaluate');
    this.lastEval = { step, ...(await evaluate(this.fsdp, data.eval)) };
    reporter.onEval?.(this.lastEval);
  }

  private async sample(step: number): Promise<void> {
    const { options, data, reporter } = this.prepared;
    dist.setPhase('answer');
    for (const prompt of options.samplePrompts) {
      const text = await answer(this.fsdp, data.tokenizer, prompt); // on every rank
      reporter.onSample?.({ step, prompt, answer: text });
    }
  }

  private async save(): Promise<void> {
    const { options, reporter, data, state } = this.prepared;
    const { step } = this.trainer;
    if (this.lastSaved === step) return;
    dist.setPhase('save');
    const dir = checkpointDir(options.out, step);
    Object.assign(state, { step, epoch: data.train.state().epoch, data: data.train.state() });
    await saveShardedCheckpoint(dir, this.fsdp, this.optimizer, state as unknown as JsonObject);
    this.lastSaved = step;
    reporter.onCheckpoint?.(dir, step);
    await onAllRanks(dist.group, 'removing old checkpoints', async () => {
      if (this.prepared.ownsOut) await pruneCheckpoints(options.out, state.run, options.saveTotalLimit);
    });
  }
}

/** The seed of a run that is not told one: what the program gave to init or manualSeed, as far as a number holds it. */
function defaultSeed(): number {
  const given = givenSeed();
  return given === undefined ? 42 : Number(BigInt.asUintN(53, given));
}

/** A fresh state, or that of the checkpoint `resume`, with the loader put where it stood. */
async function startState(
  options: RunOptions,
  resume: string | undefined,
  saved: TrainState | undefined,
  data: TrainData,
): Promise<TrainState> {
  const own = {
    seed: options.seed,
    worldSize: dist.getWorldSize(),
    strategy: options.strategy,
    options,
  };
  if (saved === undefined) {
    if (options.resume !== undefined) data.notes.push(`no checkpoint in ${options.out}: starting from the beginning`);
    const run = await fromRank0(dist.group, 'starting', () => randomBytes(6).toString('hex'));
    return { run, step: 0, epoch: 0, data: data.train.state(), evalBefore: null, ...own };
  }
  data.train.loadState(saved.data);
  data.notes.push(`resuming from ${resume}`, ...changedOptions(saved.options, options));
  return { ...saved, ...own };
}
