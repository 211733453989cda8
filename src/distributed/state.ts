// Degrees of parallelism, and this rank's place in the mesh they make: replicas × shards × tensor-parallel ranks, the last
// fastest. Mirrors torch.sagemaker's init and state.

import { readFileSync } from 'node:fs';
import { processState } from '../core/context.ts';
import { describe, isObject, type JsonObject, parseJson } from '../core/json.ts';
import { manualSeed } from '../tensor/random.ts';
import { computeDevice } from '../tensor/streams.ts';
import { checkDegrees } from './degrees.ts';
import { type DeviceMesh, initDeviceMesh, ranksByHost } from './device_mesh.ts';
import { allGatherJson } from './exchange.ts';
import { dist } from './index.ts';
import type { ProcessGroup } from './process_group.ts';

/** The keys of `init`; snake_case is read too. */
export interface InitConfig {
  /** Ranks that hold the parts of each layer. Default 1. */
  tensorParallelDegree?: number | undefined;
  /** 0 (default): the strategy given to FSDP; 1: NO_SHARD; k: shards of k ranks, replicated over the rest. */
  hybridShardDegree?: number | undefined;
  /** Only 1 is built. */
  contextParallelDegree?: number | undefined;
  /** Only 1 is built. */
  expertParallelDegree?: number | undefined;
  /** Seed of all initialisation, as manualSeed. */
  randomSeed?: number | undefined;
  /** Accepted with a notice on CPU ranks, which have nowhere to offload to; not built for devices. */
  smActivationOffloading?: boolean | undefined;
  /** Accepted beside smActivationOffloading. */
  activationLoadingHorizon?: number | undefined;
  /** Accepted with a notice: shards are padded, never empty. */
  allowEmptyShards?: boolean | undefined;
  /** Accepted with a notice. */
  fsdpCacheFlushWarnings?: boolean | undefined;
}

/** What `init` made. */
interface Initialised {
  /** The world that the mesh is of. */
  world: ProcessGroup;
  config: Required<Pick<InitConfig, 'tensorParallelDegree' | 'hybridShardDegree'>>;
  text: string;
  mesh: DeviceMesh;
}

const held: { current: Initialised | undefined } = processState('init', 'what init was called with, and its mesh', {
  current: undefined,
});

const wholeFrom =
  (least: number) =>
  (value: unknown): boolean =>
    Number.isSafeInteger(value) && (value as number) >= least;
const isBoolean = (value: unknown): boolean => typeof value === 'boolean';

const keys: Readonly<Record<keyof InitConfig, { accepts(value: unknown): boolean; wanted: string }>> = {
  tensorParallelDegree: { accepts: wholeFrom(1), wanted: 'a whole number from 1' },
  hybridShardDegree: { accepts: wholeFrom(0), wanted: 'a whole number from 0' },
  contextParallelDegree: { accepts: wholeFrom(1), wanted: 'a whole number from 1' },
  expertParallelDegree: { accepts: wholeFrom(1), wanted: 'a whole number from 1' },
  randomSeed: { accepts: wholeFrom(0), wanted: 'a whole number from 0' },
  smActivationOffloading: { accepts: isBoolean, wanted: 'true or false' },
  activationLoadingHorizon: { accepts: wholeFrom(1), wanted: 'a whole number from 1' },
  allowEmptyShards: { accepts: isBoolean, wanted: 'true or false' },
  fsdpCacheFlushWarnings: { accepts: isBoolean, wanted: 'true or false' },
};

const camel = (key: string): string => key.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());

function readSource(config: InitConfig | JsonObject | string): { json: unknown; name: string } {
  if (typeof config !== 'string') return { json: config, name: 'init' };
  if (config.trimStart().startsWith('{')) return { json: parseJson(config, 'init'), name: 'init' };
  let text: string;
  try {
    text = readFileSync(config, 'utf8');
  } catch (cause) {
    throw new Error(`init: cannot read ${config}: ${(cause as Error).message}`, { cause });
  }
  return { json: parseJson(text, config), name: config };
}

/** @internal Checks a config: an object, JSON text, or the path of a JSON file. Errors name the key, what was got and wanted. */
export function parseInitConfig(config: InitConfig | JsonObject | string): InitConfig {
  const { json, name } = readSource(config);
  if (!isObject(json)) throw new TypeError(`${name}: the config must be an object, got ${describe(json)}`);
  const out: Record<string, unknown> = {};
  for (const [given, value] of Object.entries(json)) {
    const key = camel(given) as keyof InitConfig;
    const rule = Object.hasOwn(keys, key) ? keys[key] : undefined;
    if (!rule) throw new Error(`${name}: unknown key ${given}; known are ${Object.keys(keys).join(', ')}`);
    if (value === undefined || value === null) continue;
    if (key in out) throw new Error(`${name}: ${given} is given in both spellings`);
    if (!rule.accepts(value)) throw new RangeError(`${name}: ${given} must be ${rule.wanted}, got ${describe(value)}`);
    out[key] = value;
  }
  const parsed = out as InitConfig;
  const tp = parsed.tensorParallelDegree ?? 1;
  if ((parsed.expertParallelDegree ?? 1) > 1 && tp > 1)
    throw new Error(
      `${name}: expert parallelism (${parsed.expertParallelDegree}) cannot be combined with tensor parallelism (${tp})`,
    );
  for (const key of ['contextParallelDegree', 'expertParallelDegree'] as const) {
    const degree = parsed[key] ?? 1;
    if (degree > 1) throw new Error(`${name}: ${key} ${degree} is not built yet; only 1 is`);
  }
  return parsed;
}

/**
 * Sets degrees and seed of this run: an object, JSON text, or the path of a JSON file. Collective; blocks. Call it after
 * dist.initProcessGroup and before transform and FSDP. Errors name the key or the numbers that do not fit.
 */
export function init(config: InitConfig | JsonObject | string): void {
  const parsed = parseInitConfig(config);
  if (!dist.isInitialized()) throw new Error('init: call await dist.initProcessGroup() first');
  if (parsed.smActivationOffloading && computeDevice() !== 'cpu')
    throw new Error('init: smActivationOffloading is not built yet; only false is');
  const world = dist.group;
  const { tensorParallelDegree = 1, hybridShardDegree = 0 } = parsed;
  checkDegrees(world.size, tensorParallelDegree, hybridShardDegree);
  const text = JSON.stringify([tensorParallelDegree, hybridShardDegree]);
  const all = allGatherJson(world, text);
  const other = all.findIndex((theirs) => theirs !== all[0]);
  if (other >= 0) {
    throw new Error(
      `init: ranks ask for different degrees (tensor-parallel, hybrid shard): rank 0 for ${all[0]}, rank ${other} for ${all[other]}`,
    );
  }
  if (parsed.randomSeed !== undefined) manualSeed(parsed.randomSeed);
  if (world.rank === 0) {
    for (const key of ['allowEmptyShards', 'fsdpCacheFlushWarnings'] as const)
      if (parsed[key] !== undefined) console.warn(`rankzero: init: ${key} has no effect here`);
    if (parsed.smActivationOffloading)
      console.warn('rankzero: init: smActivationOffloading has no effect: CPU ranks have nowhere to offload to');
  }
  const { current } = held;
  if (current?.world === world) {
    if (current.text === text) return;
    throw new Error(`init was called before with other degrees: ${current.text}, now ${text}`);
  }
  const mesh = meshOf(world.size, tensorParallelDegree, hybridShardDegree);
  // Those that a program may ask for on some ranks alone are made here, by all.
  for (const axes of [['tensor'], dataAxes, lossAxes, ['shard'], ['replicate']]) mesh.group(...axes);
  held.current = { world, config: { tensorParallelDegree, hybridShardDegree }, text, mesh };
}

/** Ranks that get batches of their own. */
const dataAxes = ['replicate', 'shard'] as const;
/** Ranks whose losses are summed: context-parallel ranks have parts of one sequence. */
const lossAxes = ['replicate', 'shard', 'context'] as const;

function meshOf(worldSize: number, tensor: number, hybridShardDegree: number): DeviceMesh {
  const dataParallel = worldSize / tensor;
  const shard = hybridShardDegree === 0 ? dataParallel : hybridShardDegree;
  const mesh = initDeviceMesh([dataParallel / shard, shard, 1, tensor], {
    dimNames: ['replicate', 'shard', 'context', 'tensor'],
    order: ranksByHost(dist.group),
  });
  // Experts see the ranks of a shard group as groups of experts, and as shards of each of them.
  return mesh.withView(mesh.refold(['shard', 'context'], { expertShard: shard, expert: 1 }));
}

/** This rank's place. Without `init`: one tensor-parallel rank, and all ranks data-parallel. */
export interface ParallelState {
  readonly isInitialized: boolean;
  /** Rank and size of the world. */
  readonly rank: number;
  readonly worldSize: number;
  /** All ranks. */
  readonly worldGroup: ProcessGroup;
  readonly tensorParallelDegree: number;
  /** As given to init: 0 leaves the strategy to FSDP. */
  readonly hybridShardDegree: number;
  /** Rank and size within the tensor-parallel group: ranks that hold the parts of the same layers and get the same batch. */
  readonly tpRank: number;
  readonly tpSize: number;
  /** Undefined without init. */
  readonly tpProcessGroup: ProcessGroup | undefined;
  /** Rank and size among the ranks that get batches of their own. */
  readonly dpRank: number;
  readonly dpSize: number;
  readonly dpProcessGroup: ProcessGroup | undefined;
  /** Ranks over which the loss of a batch is summed: those of dpProcessGroup, and the context-parallel ranks of each. */
  readonly lossGroup: ProcessGroup;
  /** Rank and size among the ranks that hold the shards of one copy of the model; context-parallel ranks are among them. */
  readonly shardRank: number;
  readonly shardSize: number;
  /** Rank and size among the ranks that hold the same shards. */
  readonly replicateRank: number;
  readonly replicateSize: number;
  /** SMP's rep_rank_process_group: the ranks that hold the same shards. Undefined without init. */
  readonly repRankProcessGroup: ProcessGroup | undefined;
  /** Axes replicate, shard, context, tensor, outermost first; `expert` and `expertShard` are another folding of shard × context. */
  readonly deviceMesh: DeviceMesh | undefined;
}

// Groups of a world that was left do not count.
function live(): Initialised | undefined {
  const { current } = held;
  return current && dist.isInitialized() && dist.group === current.world ? current : undefined;
}

/** This rank's position and the number of ranks on axes of the mesh, flattened; without init all ranks are on `shard`. */
function along(axes: readonly string[]): { rank: number; size: number } {
  const mesh = live()?.mesh;
  if (!mesh) return axes.includes('shard') ? { rank: dist.getRank(), size: dist.getWorldSize() } : { rank: 0, size: 1 };
  const ranks = mesh.ranksOf(...axes);
  return { rank: ranks.indexOf(dist.getRank()), size: ranks.length };
}

const shardAxes = ['shard', 'context'] as const;

export const state: ParallelState = {
  get isInitialized() {
    return live() !== undefined;
  },
  get rank() {
    return dist.getRank();
  },
  get worldSize() {
    return dist.getWorldSize();
  },
  get worldGroup() {
    return dist.group;
  },
  get tensorParallelDegree() {
    return along(['tensor']).size;
  },
  get hybridShardDegree() {
    return live()?.config.hybridShardDegree ?? 0;
  },
  get tpRank() {
    return along(['tensor']).rank;
  },
  get tpSize() {
    return along(['tensor']).size;
  },
  get tpProcessGroup() {
    return live()?.mesh.group('tensor');
  },
  get dpRank() {
    return along(dataAxes).rank;
  },
  get dpSize() {
    return along(dataAxes).size;
  },
  get dpProcessGroup() {
    return live()?.mesh.group(...dataAxes);
  },
  get lossGroup() {
    return live()?.mesh.group(...lossAxes) ?? dist.group;
  },
  get shardRank() {
    return along(shardAxes).rank;
  },
  get shardSize() {
    return along(shardAxes).size;
  },
  get replicateRank() {
    return along(['replicate']).rank;
  },
  get replicateSize() {
    return along(['replicate']).size;
  },
  get repRankProcessGroup() {
    return live()?.mesh.group('replicate');
  },
  get deviceMesh() {
    return live()?.mesh;
  },
};
