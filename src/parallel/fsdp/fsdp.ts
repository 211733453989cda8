// FullyShardedDataParallel: shards the parameters, gradients and optimizer state of a model over ranks, unit by unit, and
// brings rank 0's weights to every shard while it wraps. Modules are wrapped in place, by hooks.

import { span } from '../../core/recorder.ts';
import { dist } from '../../distributed/index.ts';
import type { ProcessGroup } from '../../distributed/process_group.ts';
import { state } from '../../distributed/state.ts';
import { CausalLM } from '../../models/causal_lm.ts';
import type { GenerateOptions } from '../../models/generate.ts';
import { native } from '../../native.ts';
import { type Module, moveBuffersToDevice } from '../../nn/module.ts';
import { currentRecipe, type Parameter } from '../../nn/parameter.ts';
import { applyTies, tiedNames } from '../../nn/tied.ts';
import type { FloatDType } from '../../tensor/dtype.ts';
import {
  communicationStream,
  computeDevice,
  computeStream,
  onStream,
  order,
  StreamEvent,
} from '../../tensor/streams.ts';
import { Tensor } from '../../tensor/tensor.ts';
import type { TensorParallel } from '../tensor/context.ts';
import { fillFromRank0, fillLocally, openLanes, type UnitRecipes } from './fill.ts';
import { FlatLayout } from './flat.ts';
import { resolveGroups, withInitDegrees } from './groups.ts';
import { compareManifests } from './manifest.ts';
import { canMap, GatheredMemory, MappedMemory, type UnitMemory, wholeTensors } from './memory.ts';
import type { FsdpOptions } from './options.ts';
import { FsdpRuntime } from './runtime.ts';
import { saveFullPretrained } from './save_pretrained.ts';
import { StagingRing, scatterFromRank0, stageLocally } from './scatter.ts';
import {
  type FullStateDictOptions,
  fullStateDict,
  type LocalStateDict,
  localStateDict,
  type ShardedStateDict,
  shardedStateDict,
} from './state_dict.ts';
import { type SummonOptions, summon } from './summon.ts';
import { FsdpUnit, gradientSquares, type UnitDtypes, type UnitGroups } from './unit.ts';
import { type PlannedUnit, planUnits } from './units.ts';
import { transformerAutoWrapPolicy } from './wrap.ts';

/** A unit before it has memory. */
interface UnitShape {
  layout: FlatLayout;
  dtypes: UnitDtypes;
}

/** Its memory, and what rank 0 of the source group fills directly: the flat buffer of every tensor-parallel part. */
interface UnitPlace {
  memory: UnitMemory;
  region: Tensor | undefined;
}

const wrappers = new WeakMap<Module, FullyShardedDataParallel>();

export class FullyShardedDataParallel<M extends Module = Module> {
  readonly module: M;
  /** The module's forward, through the units. Loss by numItemsInBatch counts all data-parallel ranks. */
  readonly forward: M['forward'];
  readonly groups: UnitGroups;
  /** @internal */
  readonly runtime: FsdpRuntime;
  private readonly options: FsdpOptions;
  private readonly tensorParallel: TensorParallel | undefined;

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
    this.tensorParallel = module instanceof CausalLM ? module.tensorParallel : undefined;
    if (state.tpSize > 1 && !this.tensorParallel)
      throw new Error(
        `FSDP: init asked for the tensor-parallel degree ${state.tpSize}, but the model is not divided; transform it first`,
      );
    if (this.tensorParallel?.loadsFromRank0 && !options.syncModuleStates)
      throw new Error(
        'FSDP: after transform with loadStateDictFromRank0 only rank 0 holds the weights; wrap with syncModuleStates: true',
      );
    this.groups = resolveGroups(this.options, this.tensorParallel?.group);
    this.runtime = new FsdpRuntime(this.options);
    module.assignParameterNames();
    if (options.syncModuleStates) this.followTies();
    const policy = options.autoWrapPolicy ?? (module instanceof CausalLM ? transformerAutoWrapPolicy() : () => []);
    const inner = [...module.modules()].flatMap((below) => wrappers.get(below) ?? []);
    if (inner.some((wrapper) => wrapper.module === (module as Module)))
      throw new Error('FSDP: this module is wrapped already');
    const earlier = new Set(inner.flatMap((wrapper) => wrapper.runtime.units.map((unit) => unit.module)));
    let planned: PlannedUnit[] = [];
    let failure: unknown;
    try {
      planned = planUnits(module, policy(module), earlier, options);
      this.checkSource(planned);
    } catch (error) {
      failure = error;
    }
    if (options.syncModuleStates) {
      const entries = planned.flatMap(({ name, parameters }) =>
        parameters.map((parameter) => ({
          name: parameter.name,
          shape: parameter.shape,
          dtype: parameter.dtype,
          requiresGrad: parameter.requiresGrad,
          unit: name,
        })),
      );
      compareManifests(dist.group, entries, failure === undefined ? '' : (failure as Error).message);
    }
    if (failure !== undefined) throw failure;
    for (const wrapper of inner) this.runtime.adopt(wrapper.runtime.units);
    this.wrap(planned);
    moveBuffersToDevice(module, computeDevice());
    for (const ignored of options.ignoredModules ?? []) ignored.to(computeDevice());
    if (options.syncModuleStates) this.syncBuffers();
    communicationStreamDone();
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
    return this.runtime.units;
  }

  /** The group whose rank 0 sends the weights: of one replica, and of one tensor-parallel rank unless rank 0 alone has them. */
  private get sourceGroup(): ProcessGroup {
    return this.tensorParallel?.loadsFromRank0 ? this.groups.grid : this.groups.shard;
  }

  /** Whether this rank sends the weights. */
  private get isSource(): boolean {
    return this.sourceGroup.rank === 0 && this.groups.replicate.rank === 0;
  }

  private checkSource(planned: readonly PlannedUnit[]): void {
    const { syncModuleStates, paramInitFn } = this.options;
    if (!syncModuleStates || paramInitFn || !this.isSource) return;
    for (const { parameters } of planned) {
      const left = parameters.find((parameter) => parameter.device === 'meta');
      if (left) throw new Error(`FSDP: rank 0 must hold the weights that it sends, but ${left.name} is on meta`);
    }
  }

  // Rank 0's table of tied names is authoritative: a file may untie what the config ties.
  private followTies(): void {
    const group = dist.group;
    if (group.size === 1) return;
    const own = new TextEncoder().encode(JSON.stringify(tiedNames(this.module)));
    const table = JSON.parse(new TextDecoder().decode(group.broadcastBytes(own, 0))) as [string, string][];
    for (const change of applyTies(this.module, table)) {
      console.warn(`rankzero: rank ${group.rank} follows rank 0: ${change}`);
    }
  }

  private wrap(planned: readonly PlannedUnit[]): void {
    const started = performance.now();
    const bytesOf = (unit: PlannedUnit): number =>
      unit.parameters.reduce((sum, parameter) => sum + parameter.numel, 0) * 4;
    const totalBytes = planned.reduce((sum, unit) => sum + bytesOf(unit), 0);
    let bytes = 0;
    // The host stays at most two units ahead of the transfers.
    const filled = planned.filter((plan) => plan.parameters.length > 0 || plan === planned.at(-1));
    const shapes = filled.map((plan) => this.shapeOf(plan));
    const places = canMap() ? this.allocateMapped(shapes) : this.allocateShards(shapes);
    openLanes();
    using ring = new StagingRing(this.sourceGroup);
    const inFlight: { event: StreamEvent; unit: PlannedUnit }[] = [];
    const finish = (): void => {
      const { event, unit } = inFlight.shift()!;
      event.synchronize();
      event.dispose();
      bytes += bytesOf(unit);
      this.options.onProgress?.({ unit: unit.name, bytes, totalBytes, seconds: (performance.now() - started) / 1000 });
    };
    for (const [i, plan] of filled.entries()) {
      const unit = this.wrapUnit(plan, shapes[i]!, places[i]!, i, ring);
      this.runtime.add(unit, plan === planned.at(-1));
      inFlight.push({ event: new StreamEvent(communicationStream()), unit: plan });
      if (inFlight.length > 2) finish();
    }
    while (inFlight.length > 0) finish();
    if (computeDevice() !== 'cpu') return;
    // In one go; a fault a page later would cost more.
    onStream(communicationStream(), () => {
      for (const unit of this.runtime.units) native.tensorPages(unit.shard.handle, true);
    });
  }

  private shapeOf({ parameters }: PlannedUnit): UnitShape {
    const { mixedPrecision } = this.options;
    const own: FloatDType = (parameters[0]?.dtype as FloatDType | undefined) ?? 'float32';
    const compute = mixedPrecision?.paramDtype ?? own;
    return {
      layout: new FlatLayout(parameters, this.groups.shard.size),
      dtypes: {
        master: mixedPrecision ? 'float32' : own,
        compute,
        reduce: mixedPrecision?.reduceDtype ?? (mixedPrecision?.paramDtype ? compute : own),
      },
    };
  }

  /** Memory for all units before the first is filled: one agreement of the ranks for each dtype. */
  private allocateMapped(shapes: readonly UnitShape[]): UnitPlace[] {
    const { shard } = this.groups;
    const parts = this.sourceGroup.size / shard.size;
    const master = new Map<UnitShape, Tensor>();
    const compute = new Map<UnitShape, Tensor>();
    for (const dtype of new Set(shapes.map(({ dtypes }) => dtypes.master))) {
      const these = shapes.filter(({ dtypes }) => dtypes.master === dtype);
      const numels = these.map(({ layout }) => layout.numel * parts);
      const tensors = wholeTensors(this.sourceGroup, numels, dtype, 'parameter');
      for (const [i, shape] of these.entries()) master.set(shape, tensors[i]!);
    }
    const cast = shapes.filter(({ dtypes }) => dtypes.compute !== dtypes.master);
    for (const dtype of new Set(cast.map(({ dtypes }) => dtypes.compute))) {
      const these = cast.filter(({ dtypes }) => dtypes.compute === dtype);
      const numels = these.map(({ layout }) => layout.numel);
      const tensors = wholeTensors(shard, numels, dtype, 'unshard');
      for (const [i, shape] of these.entries()) compute.set(shape, tensors[i]!);
    }
    return shapes.map((shape) => {
      const region = master.get(shape)!;
      const { numel } = shape.layout;
      const part = region.numel > numel ? (this.groups.tensor?.rank ?? 0) : 0;
      const flat = region.slice(part * numel, [numel]);
      return { memory: new MappedMemory(shard, flat, compute.get(shape)), region };
    });
  }

  private allocateShards(shapes: readonly UnitShape[]): UnitPlace[] {
    return onStream(communicationStream(), () =>
      shapes.map(({ layout, dtypes }) => {
        const shard = Tensor.empty([layout.shardNumel], dtypes.master, 'parameter', computeDevice());
        return { memory: new GatheredMemory(this.groups.shard, shard, dtypes.compute), region: undefined };
      }),
    );
  }

  private wrapUnit(
    plan: PlannedUnit,
    { layout, dtypes }: UnitShape,
    { memory, region }: UnitPlace,
    lane: number,
    ring: StagingRing,
  ): FsdpUnit {
    const { syncModuleStates, paramInitFn, postParamInitFn } = this.options;
    this.materialize(plan, paramInitFn);
    postParamInitFn?.(plan.module);
    const unit = new FsdpUnit(plan.name, plan.module, layout, this.groups, dtypes, memory);
    const receives = syncModuleStates && !this.isSource;
    let recipes: UnitRecipes | undefined;
    if (!receives)
      recipes = new Map(plan.parameters.map((parameter) => [parameter, currentRecipe(parameter)] as const));
    if (!syncModuleStates && computeDevice() !== 'cpu') stageLocally(unit, recipes!, ring);
    else if (!syncModuleStates) fillLocally(unit, recipes!, lane);
    else if (region) fillFromRank0(unit, recipes, region, this.sourceGroup, lane);
    else scatterFromRank0(unit, recipes, ring, this.sourceGroup);
    for (const parameter of plan.parameters) {
      parameter.checkpointDtype ??= parameter.dtype;
      const writer = receives ? 'receive' : recipes!.get(parameter)!.writer;
      parameter.setOwner(unit, writer);
      parameter.dtype = dtypes.master;
    }
    region?.dispose();
    return unit;
  }

  /** Gives meta parameters values by the init function, or by resetParameters; with sync they may stay on meta. */
  private materialize(plan: PlannedUnit, paramInitFn: FsdpOptions['paramInitFn']): void {
    const onMeta = (): Parameter | undefined => plan.parameters.find((parameter) => parameter.device === 'meta');
    if (!onMeta()) return;
    if (paramInitFn) for (const module of plan.modules) paramInitFn(module);
    if (this.options.syncModuleStates) {
      const left = onMeta();
      if (this.isSource && left)
        throw new Error(`FSDP: rank 0 must hold the weights that it sends, but ${left.name} is on meta`);
      return;
    }
    if (!paramInitFn) {
      for (const module of plan.modules) {
        if ([...module.ownParameters()].some(([, parameter]) => parameter.device === 'meta')) module.resetParameters();
      }
    }
    const left = onMeta();
    if (left)
      throw new Error(
        `FSDP: parameter ${left.name} is still on meta after its init function; wrap with syncModuleStates, or fill it there`,
      );
  }

  private syncBuffers(): void {
    const comm = communicationStream();
    order(computeStream, comm);
    onStream(comm, () => {
      const { grid, replicate } = this.groups;
      for (const [, tensor] of this.module.namedBuffers()) {
        if (grid.size > 1 && replicate.rank === 0) grid.broadcast(tensor.handle, 0);
        if (replicate.size > 1) replicate.broadcast(tensor.handle, 0);
      }
    });
    order(comm, computeStream);
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
    return span('clip gradients', '', () => this.clip(maxNorm));
  }

  private clip(maxNorm: number): Tensor {
    const empty = (shape: readonly number[]): Tensor => Tensor.empty(shape, 'float32', 'other', computeDevice());
    const [sum, factor, norm] = [empty([1]), empty([1]), empty([])];
    gradientSquares(this.units, sum);
    const comm = communicationStream();
    if (this.groups.grid.size > 1) {
      order(computeStream, comm);
      onStream(comm, () => this.groups.grid.allReduce(sum.handle, 'sum'));
      order(comm, computeStream);
    }
    native.clipFactor(norm.handle, factor.handle, sum.handle, maxNorm);
    for (const unit of this.units) if (unit.gradShard) unit.gradScale = factor.detach();
    sum.dispose();
    factor.dispose();
    return norm;
  }

  /** Runs `fn` so that backward accumulates unreduced gradients; the next backward outside reduces their sum. */
  noSync<T>(fn: () => T): T {
    const set = (value: boolean): void => {
      for (const unit of this.units) unit.accumulateOnly = value;
    };
    set(true);
    let result: T;
    try {
      result = fn();
    } catch (error) {
      set(false);
      throw error;
    }
    if (result instanceof Promise) return result.finally(() => set(false)) as T;
    set(false);
    return result;
  }

  /** Runs `fn` with whole parameters in the master dtype; changes are written back to the shards. Collective; blocks. */
  summonFullParams<T>(fn: () => T, options: SummonOptions = {}): T {
    return summon(this.units, this.runtime, fn, options);
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

  /** Writes a Hugging Face folder from rank 0, unit by unit; nobody holds the whole model. Collective. */
  async savePretrained(dir: string, options: { maxShardBytes?: number | undefined } = {}): Promise<void> {
    if (!(this.module instanceof CausalLM))
      throw new Error('savePretrained: the wrapped module is not a model of this package');
    await saveFullPretrained(dir, this.module, this.units, this.groups, options);
  }

  /** As the model's own; every rank calls it with the same prompt and gets the same answer. Collective. */
  async generate(ids: readonly number[], options?: GenerateOptions): Promise<number[]> {
    if (!(this.module instanceof CausalLM))
      throw new Error('generate: the wrapped module is not a model of this package');
    try {
      return await this.module.generate(ids, options);
    } finally {
      this.runtime.reshardAll();
    }
  }
}

function communicationStreamDone(): void {
  const comm = communicationStream();
  order(comm, computeStream);
  native.streamSynchronize(comm);
}
