// Degrees of parallelism, and this rank's place in the mesh they make: replicas × shards × tensor-parallel ranks, the last
// fastest. Mirrors torch.sagemaker's init and state.
import { readFileSync } from 'node:fs';
import { describe, isObject, type JsonObject, parseJson } from '../core/json.ts';
import { manualSeed } from '../tensor/random.ts';
import { checkDegrees } from './degrees.ts';
import { type DeviceMesh, initDeviceMesh } from './device_mesh.ts';
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
  /** Only false is built (CPU ranks have nowhere to offload to). */
  smActivationOffloading?: boolean | undefined;
  /** Accepted beside smActivationOffloading: false. */
  activationLoadingHorizon?: number | undefined;
  /** Accepted with a notice: shards are padded, never empty. */
  allowEmptyShards?: boolean | undefined;
  /** Accepted with a notice. */
  fsdpCacheFlushWarnings?: boolean | undefined;
}

/** What `init` made. */
interface Initialised {
  /** The world that the groups belong to. */
  world: ProcessGroup;
  config: Required<Pick<InitConfig, 'tensorParallelDegree' | 'hybridShardDegree'>>;
  text: string;
  mesh: DeviceMesh;
  dp: ProcessGroup;
}

let current: Initialised | undefined;

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
  if (parsed.smActivationOffloading)
    throw new Error(`${name}: smActivationOffloading is not built yet, and CPU ranks have nowhere to offload to`);
  return parsed;
}

/**
 * Sets degrees and seed of this run: an object, JSON text, or the path of a JSON file. Collective; blocks. Call it after
 * dist.initProcessGroup and before transform and FSDP. Errors name the key or the numbers that do not fit.
 */
export function init(config: InitConfig | JsonObject | string): void {
  const parsed = parseInitConfig(config);
  if (!dist.isInitialized()) throw new Error('init: call await dist.initProcessGroup() first');
  const world = dist.group;
  const { tensorParallelDegree = 1, hybridShardDegree = 0 } = parsed;
  checkDegrees(world.size, tensorParallelDegree, hybridShardDegree);
  const text = JSON.stringify([tensorParallelDegree, hybridShardDegree]);
  const all = world.allGatherBytes(new TextEncoder().encode(text)).map((bytes) => new TextDecoder().decode(bytes));
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
  }
  if (current?.world === world) {
    if (current.text === text) return;
    throw new Error(`init was called before with other degrees: ${current.text}, now ${text}`);
  }
  const dpSize = world.size / tensorParallelDegree;
  const shard = hybridShardDegree === 0 ? dpSize : hybridShardDegree;
  const mesh = initDeviceMesh([dpSize / shard, shard, tensorParallelDegree], {
    dimNames: ['replicate', 'shard', 'tensor'],
  });
  const tpRank = mesh.coordinate[2]!;
  const dp = world.split(Array.from({ length: dpSize }, (_, i) => i * tensorParallelDegree + tpRank))!;
  current = { world, config: { tensorParallelDegree, hybridShardDegree }, text, mesh, dp };
}

/** This rank's place. Without `init`: one tensor-parallel rank, and all ranks data-parallel. */
export interface ParallelState {
  readonly isInitialized: boolean;
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
  /** Rank and size among the ranks that hold the same parts: each gets batches of its own. */
  readonly dpRank: number;
  readonly dpSize: number;
  readonly dpProcessGroup: ProcessGroup | undefined;
  readonly shardRank: number;
  readonly shardSize: number;
  readonly replicateRank: number;
  readonly replicateSize: number;
  /** Axes replicate, shard, tensor. */
  readonly deviceMesh: DeviceMesh | undefined;
}

// Groups of a world that was left do not count.
function live(): Initialised | undefined {
  return current && dist.isInitialized() && dist.group === current.world ? current : undefined;
}

const axis = (index: number): { rank: number; size: number } => {
  const mesh = live()?.mesh;
  return { rank: mesh?.coordinate[index] ?? 0, size: mesh?.shape[index] ?? 1 };
};

export const state: ParallelState = {
  get isInitialized() {
    return live() !== undefined;
  },
  get worldGroup() {
    return dist.group;
  },
  get tensorParallelDegree() {
    return axis(2).size;
  },
  get hybridShardDegree() {
    return live()?.config.hybridShardDegree ?? 0;
  },
  get tpRank() {
    return axis(2).rank;
  },
  get tpSize() {
    return axis(2).size;
  },
  get tpProcessGroup() {
    return live()?.mesh.getGroup('tensor');
  },
  get dpRank() {
    return live()?.dp.rank ?? dist.getRank();
  },
  get dpSize() {
    return live()?.dp.size ?? dist.getWorldSize();
  },
  get dpProcessGroup() {
    return live()?.dp;
  },
  get shardRank() {
    return live() ? axis(1).rank : dist.getRank();
  },
  get shardSize() {
    return live() ? axis(1).size : dist.getWorldSize();
  },
  get replicateRank() {
    return axis(0).rank;
  },
  get replicateSize() {
    return axis(0).size;
  },
  get deviceMesh() {
    return live()?.mesh;
  },
};
