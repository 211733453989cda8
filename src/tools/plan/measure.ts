// The plan itself: the training program, run dry as one rank of the world in question. Nothing here is a model of what the
// program does; it is the program.

import type { JsonObject } from '../../core/json.ts';
import { TokenDataset } from '../../data/dataset.ts';
import { DataLoader } from '../../data/loader.ts';
import { divisors, neighbours } from '../../distributed/degrees.ts';
import { dist, joinDryWorld } from '../../distributed/index.ts';
import { init } from '../../distributed/state.ts';
import { AutoModelForCausalLM, familyOf } from '../../models/auto.ts';
import type { CausalLM } from '../../models/causal_lm.ts';
import { AutoConfig, type ModelConfig } from '../../models/config.ts';
import { type DryWire, type MemoryByKind, type NativeMemoryStats, native } from '../../native.ts';
import { initEmptyWeights } from '../../nn/init_empty_weights.ts';
import type { ParallelPlan } from '../../nn/plan.ts';
import type { Recipe } from '../../nn/recipe.ts';
import { numParameters } from '../../parallel/delayed_param.ts';
import type { FsdpUnit } from '../../parallel/fsdp/unit.ts';
import { checkDivides, rulesOf } from '../../parallel/tensor/placements.ts';
import { dtypeSize, type FloatDType } from '../../tensor/dtype.ts';
import { memoryStats, resetPeakMemoryStats } from '../../tensor/memory.ts';
import { useDevice } from '../../tensor/streams.ts';
import { addFreshAdapter, modelDtype, wrapModel } from '../../train/model.ts';
import { makeOptimizer } from '../../train/optimizer.ts';
import type { FinetuneOptions } from '../../train/options.ts';
import { maxSeqLength } from '../../train/train_data.ts';
import { Trainer } from '../../train/trainer.ts';
import type { PlannedMemory, PlanReport } from './report.ts';

/** What the process that runs dry gets. */
export interface Measurement {
  config: JsonObject;
  /** Where the config came from, for errors. */
  file: string;
  rank: number;
  /** `nproc` is the world size. */
  options: FinetuneOptions;
  /** Hosts, with as many ranks each. */
  nnodes: number;
  device: 'cpu' | 'cuda';
}

/** Values of a checkpoint that nobody reads. */
const fromFile: Recipe = { writer: 'file', fileBytes: 0, read: () => {}, readRows: () => {} };

/** @internal Errors when `model` does not divide over `tp` ranks; names the nearest degrees of that many ranks that do. */
export function checkDivision(model: CausalLM, { nproc, tp }: Pick<FinetuneOptions, 'nproc' | 'tp'>): void {
  if (tp === 1) return;
  const { config } = model;
  const plan = familyOf(config).parallelPlan;
  if (!plan) throw new RangeError(`model_type "${config.modelType}" has no parallel plan; only degree 1 is possible`);
  const problem = divisionProblem(model, plan, tp);
  if (!problem) return;
  const possible = divisors(nproc).filter((degree) => !divisionProblem(model, plan, degree));
  throw new RangeError(`${problem}; the nearest degrees that fit ${nproc} ranks: ${neighbours(possible, tp)}`);
}

function divisionProblem(model: CausalLM, plan: ParallelPlan, size: number): string | undefined {
  try {
    checkDivides(model, rulesOf(model, plan), size);
    return undefined;
  } catch (error) {
    if (error instanceof RangeError) return error.message;
    throw error;
  }
}

/** @internal */
export function onMeta(config: ModelConfig, dtype: FloatDType = 'float32'): CausalLM {
  return initEmptyWeights(() => AutoModelForCausalLM.fromConfig(config, { dtype }));
}

/** Runs dry and reports. Only in a fresh process, which is dry from then on. */
export async function measure(measurement: Measurement): Promise<PlanReport> {
  const { config: json, file, rank, options, nnodes, device } = measurement;
  joinDryWorld(rank, options.nproc, options.nproc / nnodes);
  useDevice(device);
  const config = AutoConfig.fromObject(json, file);
  const model = onMeta(config, modelDtype(options));
  checkDivision(model, options);
  if (options.loraR !== undefined) addFreshAdapter(model, options);
  if (options.tp > 1) init({ tensorParallelDegree: options.tp });
  const parameters = numParameters(model);
  const trainableParameters = numParameters(model, ({ requiresGrad }) => requiresGrad);
  if (rank === 0) {
    for (const parameter of model.parameters()) parameter.setRecipe(fromFile);
    for (const parameter of model.parameters()) if (parameter.init.kind === 'derived') parameter.resetParameters();
  }

  const fsdp = wrapModel(model, options, undefined, () => {});
  const loading = { own: memoryStats(device), host: memoryStats('cpu') };
  const loadWire = native.dryWire();
  resetPeakMemoryStats();

  const { lr, batchSize, gradAccum } = options;
  const optimizer = makeOptimizer(fsdp.namedParameters(), options);
  const seqLength = maxSeqLength(options, config);
  const trainer = (startStep: number, totalSteps: number): Trainer =>
    new Trainer({
      fsdp,
      optimizer,
      loader: fullBatches(batchSize, gradAccum, seqLength),
      startStep,
      totalSteps,
      lr,
      maxGradNorm: options.maxGradNorm,
      accumulateUnsharded: options.strategy === 'NO_SHARD',
    });
  // The first step makes the optimizer state and learns the order of the units; from the second on all are alike.
  await trainer(0, 2).train();
  const before = native.dryWire();
  await trainer(2, 3).train();
  const after = native.dryWire();

  const training = { own: memoryStats(device), host: memoryStats('cpu') };
  const hostMemory = { loadPeak: loading.host.totalPeak, stepPeak: training.host.totalPeak };
  const { shard, replicate } = fsdp.groups;
  return {
    model: {
      modelType: config.modelType,
      parameters,
      trainableParameters,
      units: fsdp.units.length,
      largestUnit: largest(fsdp.units),
    },
    ranks: {
      worldSize: dist.getWorldSize(),
      nnodes,
      rank,
      replicas: replicate.size,
      shards: shard.size,
      tensorParallelDegree: options.tp,
    },
    settings: {
      device,
      strategy: options.strategy,
      optimizer: options.optimizer,
      precision: options.precision,
      activationCheckpointing: options.activationCheckpointing,
      sequenceParallel: options.sequenceParallel,
      quantize: options.quantize,
      batchSize,
      gradAccum,
      seqLength,
    },
    memory: peaks(loading.own, training.own),
    hostMemory: device === 'cuda' ? hostMemory : undefined,
    wire: { load: loadWire, step: difference(after, before) },
  };
}

/** The largest batches that the options allow: every sequence is full, and every token has a label. */
function fullBatches(batchSize: number, gradAccum: number, seqLength: number): DataLoader {
  const example = { inputIds: new Int32Array(seqLength), mask: new Uint8Array(seqLength).fill(1) };
  const examples = Array.from({ length: batchSize * gradAccum }, () => example);
  return new DataLoader(TokenDataset.from(examples), { batchSize, gradAccum });
}

function largest(units: readonly FsdpUnit[]): PlanReport['model']['largestUnit'] {
  const sizes = units.map(({ name, buckets }) => ({
    name: name || 'the root',
    parameters: buckets.reduce((sum, { layout }) => sum + layout.parameterNumel, 0),
    bytes: buckets.reduce((sum, { layout, dtypes }) => sum + layout.numel * dtypeSize(dtypes.compute), 0),
  }));
  return sizes.reduce((a, b) => (b.bytes > a.bytes ? b : a));
}

function peaks(loading: NativeMemoryStats, training: NativeMemoryStats): PlannedMemory {
  const peak = (kind: keyof MemoryByKind): number => Math.max(loading.peak[kind], training.peak[kind]);
  return {
    parameters: peak('parameter'),
    gradients: peak('gradient'),
    optimizer: peak('optimizer'),
    activations: peak('activation'),
    unshard: peak('unshard'),
    staging: peak('staging'),
    other: peak('other'),
    loadPeak: loading.totalPeak,
    stepPeak: training.totalPeak,
  };
}

function difference(after: DryWire, before: DryWire): DryWire {
  return Object.fromEntries(
    Object.entries(after).map(([kind, { calls, within, between }]) => {
      const earlier = before[kind as keyof DryWire];
      return [
        kind,
        { calls: calls - earlier.calls, within: within - earlier.within, between: between - earlier.between },
      ];
    }),
  ) as DryWire;
}
