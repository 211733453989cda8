// FullyShardedDataParallel: shards the parameters, gradients and optimizer state of a model over ranks, unit by unit, and
// brings rank 0's weights to every shard while it wraps. Modules are wrapped in place, by hooks. This is the surface; what is
// done is in the modules beside it.

import type { PretrainedFolder, SaveOptions } from '../../checkpoint/save_pretrained.ts';
import type { HeldTensor, ShardedModel } from '../../checkpoint/sharded_state.ts';
import { processState } from '../../core/context.ts';
import { settle } from '../../core/finally.ts';
import { span } from '../../core/recorder.ts';
import { dist } from '../../distributed/index.ts';
import { state } from '../../distributed/state.ts';
import type { GenerateOptions } from '../../models/generate.ts';
import { native } from '../../native.ts';
import { adaptersOf } from '../../nn/lora.ts';
import { type Module, moveBuffersToDevice } from '../../nn/module.ts';
import type { Parameter } from '../../nn/parameter.ts';
import { communicationStream, computeDevice, computeStream, order } from '../../tensor/streams.ts';
import type { Tensor } from '../../tensor/tensor.ts';
import { tensorParallelOf } from '../tensor/context.ts';
import type { ShardBucket } from './bucket.ts';
import { resolveGroups, type ShardGroups, withInitDegrees } from './groups.ts';
import { clipGradients } from './norm.ts';
import type { FsdpOptions } from './options.ts';
import { saveFullPretrained } from './save_pretrained.ts';
import { UnitSchedule } from './schedule.ts';
import { sourceOf, type WeightSource } from './source.ts';
import {
  type FullStateDictOptions,
  fullStateDict,
  type LocalStateDict,
  loadLocalStateDict,
  localStateDict,
  refuseQuantized,
  type ShardedStateDict,
  shardedStateDict,
} from './state_dict.ts';
import { type SummonOptions, summon } from './summon.ts';
import { followTies, syncBuffers } from './sync.ts';
import type { FsdpUnit } from './unit.ts';
import { agreeOnUnits } from './units.ts';
import { verifyReplicas } from './verify.ts';
import { wrapUnits } from './wrap_units.ts';

/** A model that can go on from a prompt. */
interface GeneratingModel {
  generate(ids: readonly number[], options?: GenerateOptions): Promise<number[]>;
}

const wrappers: WeakMap<Module, FullyShardedDataParallel> = processState(
  'wrappers',
  'wrappers of FSDP, by module',
  new WeakMap(),
);

export class FullyShardedDataParallel<M extends Module = Module> implements ShardedModel {
  readonly module: M;
  /** The module's forward, through the units. `numItemsInBatch` counts the labels of all data-parallel ranks. */
  readonly forward: M['forward'];
  readonly groups: ShardGroups;
  /** @internal */
  readonly schedule: UnitSchedule;
  private readonly options: FsdpOptions;
  private readonly source: WeightSource;

  /**
   * Wraps `module`. Blocks until every shard has its values. Errors come before the first transfer and are the same on
   * every rank: models that differ, meta parameters that nothing fills, tied parameters in different units.
   */
  constructor(module: M, options: FsdpOptions = {}) {
    if (!dist.isInitialized()) throw new Error('FSDP: call await dist.initProcessGroup() first');
    const { bufferDtype } = options.mixedPrecision ?? {};
    if (bufferDtype && bufferDtype !== 'float32')
      throw new Error(`FSDP: buffers stay float32; bufferDtype '${bufferDtype}' is not supported`);
    this.module = module;
    this.options = withInitDegrees(options);
    const tensorParallel = tensorParallelOf(module);
    if (state.tpSize > 1 && !tensorParallel)
      throw new Error(
        `FSDP: init asked for the tensor-parallel degree ${state.tpSize}, but the model is not divided; transform it first`,
      );
    if (tensorParallel?.loadsFromRank0 && !options.syncModuleStates)
      throw new Error(
        'FSDP: after transform with loadStateDictFromRank0 only rank 0 holds the weights; wrap with syncModuleStates: true',
      );
    this.groups = resolveGroups(this.options, tensorParallel?.group);
    this.source = sourceOf(this.groups, tensorParallel?.loadsFromRank0 ?? false);
    this.schedule = new UnitSchedule(this.options);
    module.assignParameterNames();
    if (options.syncModuleStates) followTies(module);
    const inner = [...module.modules()].flatMap((below) => wrappers.get(below) ?? []);
    if (inner.some((wrapper) => wrapper.module === (module as Module)))
      throw new Error('FSDP: this module is wrapped already');
    const earlier = new Set(inner.flatMap((wrapper) => wrapper.units.map((unit) => unit.module)));
    const planned = agreeOnUnits(module, earlier, this.source, this.options);
    for (const wrapper of inner) this.schedule.adopt(wrapper.units);
    wrapUnits(planned, { groups: this.groups, source: this.source, options: this.options, schedule: this.schedule });
    moveBuffersToDevice(module, computeDevice());
    for (const ignored of options.ignoredModules ?? []) ignored.to(computeDevice());
    if (options.syncModuleStates) syncBuffers(module, this.groups);
    order(communicationStream(), computeStream());
    native.streamSynchronize(communicationStream());
    native.memoryTrim();
    wrappers.set(module, this);
    this.forward = ((...args: unknown[]) => this.call(args)) as M['forward'];
  }

  /** Ranks whose gradients are averaged: the product of shard and replica counts. */
  get dataParallelSize(): number {
    return this.groups.shard.size * this.groups.replicate.size;
  }

  /** @internal */
  get units(): readonly FsdpUnit[] {
    return this.schedule.units;
  }

  private get buckets(): ShardBucket[] {
    return this.units.flatMap(({ buckets }) => buckets);
  }

  private call(args: unknown[]): unknown {
    const [input, ...rest] = args;
    if (input !== null && typeof input === 'object' && 'numItemsInBatch' in input && input.numItemsInBatch) {
      // Gradients are averaged over the ranks, so each divides by its part of the count.
      return this.module.forward(
        { ...input, numItemsInBatch: (input.numItemsInBatch as number) / this.dataParallelSize },
        ...rest,
      );
    }
    return this.module.forward(...args);
  }

  namedParameters(): Generator<[string, Parameter]> {
    return this.module.namedParameters();
  }

  namedBuffers(): Generator<[string, Tensor]> {
    return this.module.namedBuffers();
  }

  parameters(): Generator<Parameter> {
    return this.module.parameters();
  }

  train(mode = true): this {
    this.module.train(mode);
    return this;
  }

  eval(): this {
    return this.train(false);
  }

  zeroGrad(): void {
    for (const unit of this.units) unit.zeroGrad();
  }

  /**
   * Scales gradients so that their norm over all ranks is at most `maxNorm`; returns the norm before, 0-d float32. The
   * scaling itself is done by the optimizer's pass. Collective; enqueues.
   */
  clipGradNorm(maxNorm: number): Tensor {
    return span('clip gradients', '', () => clipGradients(this.buckets, this.groups.grid, maxNorm));
  }

  /** Runs `fn` so that backward accumulates unreduced gradients; the next backward outside reduces their sum. */
  noSync<T>(fn: () => T): T {
    const set = (value: boolean): void => {
      for (const unit of this.units) unit.accumulateOnly = value;
    };
    set(true);
    return settle(fn, () => set(false));
  }

  /** Runs `fn` with whole parameters in the master dtype; changes are written back to the shards. Collective; blocks. */
  summonFullParams<T>(fn: () => T, options: SummonOptions = {}): T {
    return summon(this.units, this.schedule, fn, options);
  }

  /** @internal As summonFullParams, for one unit after the other: `change` gets its parameters. Collective; blocks. */
  eachUnitWhole(change: (parameters: readonly Parameter[]) => void): void {
    for (const unit of this.units) {
      const parameters = unit.buckets.flatMap(({ layout }) => layout.spans.map(({ parameter }) => parameter));
      summon([unit], this.schedule, () => change(parameters), {});
    }
  }

  /** Collective. See the docs of each type. */
  stateDict(options?: FullStateDictOptions & { type?: 'FULL' | undefined }): Promise<Map<string, Tensor>>;
  stateDict(options: { type: 'SHARDED' }): Promise<ShardedStateDict>;
  stateDict(options: { type: 'LOCAL' }): Promise<LocalStateDict>;
  async stateDict(
    options: FullStateDictOptions & { type?: 'FULL' | 'SHARDED' | 'LOCAL' | undefined } = {},
  ): Promise<Map<string, Tensor> | ShardedStateDict | LocalStateDict> {
    if (options.type === 'SHARDED') return shardedStateDict(this.units);
    if (options.type === 'LOCAL') return localStateDict(this.units);
    return fullStateDict(this.module, this.units, this.groups, options);
  }

  /**
   * Takes over what stateDict({ type: 'LOCAL' }) gave on this rank, of the same model, wrapping and world size. Collective.
   * Error, before anything is written: shards that are missing, too many, or of another length or dtype.
   */
  loadLocalStateDict(local: LocalStateDict): void {
    loadLocalStateDict(this.units, local);
  }

  /**
   * Compares what replicas hold: a digest of every parameter's shard over the replicate group. Every rank calls it, and all
   * throw the same error, which names the first parameter that differs. Resolves at once without replicas. Collective.
   */
  async verifyReplicas(): Promise<void> {
    await verifyReplicas(this.module, this.units, dist.group);
  }

  /** Writes a Hugging Face folder from rank 0, unit by unit; nobody holds the whole model. Collective. */
  async savePretrained(dir: string, options: SaveOptions = {}): Promise<void> {
    const module: Module = this.module;
    if (!('configText' in module)) throw new Error('savePretrained: the wrapped module is not a model of this package');
    await saveFullPretrained(dir, module as Module & PretrainedFolder, this.units, this.groups, options);
  }

  /** As the model's own; every rank calls it with the same prompt and gets the same answer. Collective. */
  async generate(ids: readonly number[], options?: GenerateOptions): Promise<number[]> {
    const module: Module = this.module;
    if (!('generate' in module)) throw new Error('generate: the wrapped module is not a model of this package');
    try {
      return await (module as Module & GeneratingModel).generate(ids, options);
    } finally {
      this.schedule.reshardAll();
    }
  }

  /** @internal */
  get checkpointFile(): ShardedModel['checkpointFile'] {
    const { grid, replicate } = this.groups;
    // Replicas hold the same shards: those of the first replica are written.
    return { index: grid.rank, count: grid.size, isWritten: replicate.rank === 0 };
  }

  /** @internal */
  *savedParameters(): Generator<Parameter> {
    const trainedAlone = adaptersOf(this.module) !== undefined;
    for (const parameter of this.parameters()) if (!trainedAlone || parameter.requiresGrad) yield parameter;
  }

  /** @internal */
  *heldTensors(): Generator<HeldTensor> {
    const saved = new Set(this.savedParameters());
    // A bucket is of one kind: what is trained, or what is not.
    const buckets = this.buckets.filter(({ layout }) => layout.spans.some(({ parameter }) => saved.has(parameter)));
    refuseQuantized(buckets, 'a sharded checkpoint cannot have it');
    for (const bucket of buckets) yield { values: bucket.shard, ranges: [...bucket.ranges()] };
  }

  /** @internal */
  beginWrite(): void {
    this.schedule.reshardAll();
    for (const bucket of this.buckets) bucket.beginWrite();
  }

  /** @internal */
  markWritten(): void {
    for (const bucket of this.buckets) bucket.markShardWritten();
  }
}
