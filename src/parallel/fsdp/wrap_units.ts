// Wrapping: planned units get memory and values, one after the other, and their modules get hooks.
import type { ProcessGroup } from '../../distributed/process_group.ts';
import { native } from '../../native.ts';
import { currentRecipe, type Parameter } from '../../nn/parameter.ts';
import { Placement } from '../../nn/placement.ts';
import { communicationStream, computeDevice, onStream, StreamEvent } from '../../tensor/streams.ts';
import { allocate, type BucketPlace } from './allocate.ts';
import { type BucketShape, ShardBucket } from './bucket.ts';
import { type BucketRecipes, fillFromRank0, fillLocally, openLanes } from './fill.ts';
import type { ShardGroups } from './groups.ts';
import { findHostFiles, type HostFiles } from './host_files.ts';
import type { FsdpOptions } from './options.ts';
import { StagingRing, scatterFromRank0, stageLocally } from './scatter.ts';
import type { UnitSchedule } from './schedule.ts';
import { refuseMeta, type WeightSource } from './source.ts';
import { FsdpUnit } from './unit.ts';
import { bucketsOf, type PlannedUnit } from './units.ts';

export interface WrapContext {
  readonly groups: ShardGroups;
  readonly source: WeightSource;
  readonly options: FsdpOptions;
  readonly schedule: UnitSchedule;
}

/** Blocks until every shard has its values; the host stays at most two units ahead of the transfers. Collective. */
export function wrapUnits(planned: readonly PlannedUnit[], context: WrapContext): void {
  const { groups, source, options, schedule } = context;
  const filled = planned.filter((plan) => plan.parameters.length > 0 || plan === planned.at(-1));
  const shapes = filled.map((plan) => bucketsOf(plan, () => groups, options.mixedPrecision));
  const places = allocate(shapes.flat(), source.group);
  const files = findHostFiles(planned, source, groups, options.syncModuleStates ?? false);
  const progress = new LoadProgress(planned, options.onProgress);
  openLanes();
  using ring = new StagingRing(source.group);
  let lane = 0;
  for (const [i, plan] of filled.entries()) {
    materialize(plan, context);
    options.postParamInitFn?.(plan.module);
    const buckets = shapes[i]!.map((shape) => fillBucket(shape, places.get(shape)!, lane++, ring, files, context));
    schedule.add(new FsdpUnit(plan.name, plan.module, plan.modules, buckets), plan === planned.at(-1));
    progress.enqueued(plan);
  }
  progress.finish();
  files.close();
  if (computeDevice() !== 'cpu') return;
  // In one go; a fault a page later would cost more.
  onStream(communicationStream(), () => {
    for (const { buckets } of schedule.units) for (const { shard } of buckets) native.tensorPages(shard.handle, true);
  });
}

/** Waits for units that are being filled, so that two are at a time, and says how far it is. */
class LoadProgress {
  private readonly started = performance.now();
  private readonly totalBytes: number;
  private readonly onProgress: FsdpOptions['onProgress'];
  private readonly inFlight: { event: StreamEvent; unit: PlannedUnit }[] = [];
  private bytes = 0;

  constructor(planned: readonly PlannedUnit[], onProgress: FsdpOptions['onProgress']) {
    this.totalBytes = planned.reduce((sum, unit) => sum + bytesOf(unit), 0);
    this.onProgress = onProgress;
  }

  enqueued(unit: PlannedUnit): void {
    this.inFlight.push({ event: new StreamEvent(communicationStream()), unit });
    if (this.inFlight.length > 2) this.finishOne();
  }

  finish(): void {
    while (this.inFlight.length > 0) this.finishOne();
  }

  private finishOne(): void {
    const { event, unit } = this.inFlight.shift()!;
    event.synchronize();
    event.dispose();
    this.bytes += bytesOf(unit);
    const seconds = (performance.now() - this.started) / 1000;
    this.onProgress?.({ unit: unit.name, bytes: this.bytes, totalBytes: this.totalBytes, seconds });
  }
}

const bytesOf = (unit: PlannedUnit): number => unit.parameters.reduce((sum, parameter) => sum + parameter.numel, 0) * 4;

function fillBucket(
  shape: BucketShape,
  { memory, region }: BucketPlace,
  lane: number,
  ring: StagingRing,
  files: HostFiles,
  { source, options }: WrapContext,
): ShardBucket {
  const bucket = new ShardBucket(shape, memory);
  const parameters = shape.layout.spans.map(({ parameter }) => parameter);
  const receives = options.syncModuleStates && !source.isHere;
  let recipes: BucketRecipes | undefined;
  if (!receives) recipes = new Map(parameters.map((parameter) => [parameter, currentRecipe(parameter)] as const));
  const here = files.recipesOf(shape);
  const wire = files.wireDtype(shape);
  if (here) fillFromHost(bucket, here, lane, ring, files.near);
  else if (!options.syncModuleStates && computeDevice() !== 'cpu') stageLocally(bucket, recipes!, ring);
  else if (!options.syncModuleStates) fillLocally(bucket, recipes!, lane);
  else if (region) fillFromRank0(bucket, recipes, region, source.group, lane, wire);
  else scatterFromRank0(bucket, recipes, ring, source.group, wire);
  for (const recipe of [...(recipes?.values() ?? []), ...(here?.values() ?? [])]) recipe.release?.();
  for (const parameter of parameters) {
    parameter.placement = onRanks(parameter.placement, shape.groups);
    parameter.checkpointDtype ??= parameter.dtype;
    parameter.setOwner(bucket, receives ? 'receive' : recipes!.get(parameter)!.writer);
    parameter.dtype = shape.dtypes.master;
  }
  region?.dispose();
  return bucket;
}

/** Every rank reads its shard from files of its host, or of ranks there that hold the same shard the first does. Enqueues. */
function fillFromHost(
  bucket: ShardBucket,
  recipes: BucketRecipes,
  lane: number,
  ring: StagingRing,
  near: ProcessGroup | undefined,
): void {
  if (!near || near.rank === 0) {
    if (computeDevice() === 'cpu') fillLocally(bucket, recipes, lane);
    else stageLocally(bucket, recipes, ring);
  }
  if (near) onStream(communicationStream(), () => near.broadcast(bucket.shard.handle, 0));
}

/** A parameter that no plan has placed is whole on each of the ranks that divide the layers. */
function onRanks(placement: Placement, { tensor }: ShardGroups): Placement {
  if (!tensor || placement.position.size > 1) return placement;
  const { axis } = placement.position;
  return new Placement(placement.fullShape, placement.held, { axis, size: tensor.size, rank: tensor.rank });
}

/** Gives meta parameters values by the init function, or by resetParameters; with sync they may stay on meta. */
function materialize(plan: PlannedUnit, { source, options }: WrapContext): void {
  const { paramInitFn, syncModuleStates } = options;
  const onMeta = (): Parameter | undefined => plan.parameters.find((parameter) => parameter.device === 'meta');
  if (!onMeta()) return;
  if (paramInitFn) for (const module of plan.modules) paramInitFn(module);
  if (syncModuleStates) {
    if (source.isHere) refuseMeta(plan.parameters);
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
