// The groups of a strategy, as axes of one mesh.
import {
  type DeviceMesh,
  foldGroup,
  gridOf,
  groupOfRanks,
  initDeviceMesh,
  ranksByHost,
} from '../../distributed/device_mesh.ts';
import { dist } from '../../distributed/index.ts';
import type { ProcessGroup } from '../../distributed/process_group.ts';
import { state } from '../../distributed/state.ts';
import { computeDevice } from '../../tensor/streams.ts';
import type { FsdpOptions, ShardingStrategy } from './options.ts';

/** Over which ranks a bucket is divided and its gradients are summed. */
export interface ShardGroups {
  /** Ranks that hold the shards of one copy. */
  readonly shard: ProcessGroup;
  /**
   * The same ranks, to gather parameters. On devices and between hosts it is a group of its own, since collectives of one group
   * wait for each other: a gather would wait behind an earlier reduction. Mirrors PyTorch's all-gather process group.
   */
  readonly gather: ProcessGroup;
  /** Ranks that hold the same shard; size 1 without replication. */
  readonly replicate: ProcessGroup;
  /** Ranks that hold the other parts of each layer; undefined without tensor parallelism. */
  readonly tensor: ProcessGroup | undefined;
  /** Shard × tensor-parallel ranks, the latter fastest: together one whole model. */
  readonly grid: ProcessGroup;
}

const isHybrid = (strategy: ShardingStrategy): boolean =>
  strategy === 'HYBRID_SHARD' || strategy === '_HYBRID_SHARD_ZERO2';

/** What init asked for takes the place of the strategy. */
export function withInitDegrees(options: FsdpOptions): FsdpOptions {
  const degree = state.hybridShardDegree;
  if (degree === 0 || options.deviceMesh || options.processGroup) return options;
  if (degree === 1) return { ...options, shardingStrategy: 'NO_SHARD' };
  const keeps = options.shardingStrategy === 'SHARD_GRAD_OP' || options.shardingStrategy === '_HYBRID_SHARD_ZERO2';
  return { ...options, shardingStrategy: keeps ? '_HYBRID_SHARD_ZERO2' : 'HYBRID_SHARD', hybridShardDegree: degree };
}

/** The groups of this rank; `tensor` is the tensor-parallel one of the model. Errors name the degrees. Collective. */
export function resolveGroups(options: FsdpOptions, tensor: ProcessGroup | undefined): ShardGroups {
  const divided = tensor && tensor.size > 1 ? tensor : undefined;
  const given = givenGroups(options);
  if (given) {
    const [shard, replicate] = given;
    const gather = gatherGroup(shard);
    if (!divided) return { shard, gather, replicate, tensor: undefined, grid: shard };
    return { shard, gather, replicate, tensor: divided, grid: gridOf(shard, divided) };
  }
  const mesh = shardMesh(options);
  const shard = mesh.group('shard');
  return {
    shard,
    gather: gatherGroup(shard),
    replicate: mesh.group('replicate'),
    tensor: divided,
    grid: divided ? mesh.group('shard', 'tensor') : shard,
  };
}

function gatherGroup(shard: ProcessGroup): ProcessGroup {
  const isImmediate = shard.size === 1 || (computeDevice() === 'cpu' && shard.hosts === 1);
  return isImmediate ? shard : groupOfRanks(shard.ranks, 'gather');
}

/** The world's mesh, or that of init, with its data-parallel axes folded into `replicate` and `shard` as the strategy wants. */
function shardMesh(options: FsdpOptions): DeviceMesh {
  const mesh =
    state.deviceMesh ??
    initDeviceMesh([1, dist.getWorldSize(), 1], {
      dimNames: ['replicate', 'shard', 'context'],
      order: ranksByHost(dist.group),
    });
  const dataAxes = ['replicate', 'shard', 'context'];
  const numRanks = dataAxes.reduce((count, axis) => count * mesh.size(axis), 1);
  const shard = shardDegree(options, numRanks);
  return mesh.refold(dataAxes, { replicate: numRanks / shard, shard });
}

function shardDegree(options: FsdpOptions, numRanks: number): number {
  const strategy = options.shardingStrategy ?? 'FULL_SHARD';
  if (strategy === 'NO_SHARD') return 1;
  if (!isHybrid(strategy)) return numRanks;
  const degree = options.hybridShardDegree ?? ranksOfEachHost() / state.tpSize;
  if (!Number.isInteger(degree) || degree < 1 || numRanks % degree !== 0)
    throw new Error(`FSDP: the shard degree ${degree} of ${strategy} must divide the ${numRanks} ranks`);
  return degree;
}

/** By default a copy of the model is divided over a host; all must have as many ranks then. */
function ranksOfEachHost(): number {
  const { hostOf, hosts } = dist.group;
  const counts = Array.from({ length: hosts }, (_, host) => hostOf.filter((other) => other === host).length);
  if (counts.some((count) => count !== counts[0]))
    throw new Error(
      `FSDP: hybrid strategies shard within a host and replicate over hosts, but the hosts have ${counts.join(', ')} ranks: ` +
        'start as many on each, or set hybridShardDegree',
    );
  return counts[0]!;
}

/** The shard and the replicate group that the program gave. */
function givenGroups(options: FsdpOptions): readonly [ProcessGroup, ProcessGroup] | undefined {
  const strategy = options.shardingStrategy ?? 'FULL_SHARD';
  if (options.deviceMesh && options.processGroup)
    throw new Error('FSDP: give a deviceMesh or a processGroup, not both');
  const given = options.deviceMesh ? groupsOf(options.deviceMesh, strategy) : options.processGroup;
  if (!given) return undefined;
  if (Array.isArray(given)) {
    if (!isHybrid(strategy))
      throw new Error(`FSDP: a pair of process groups is for hybrid strategies, not ${strategy}`);
    return given as [ProcessGroup, ProcessGroup];
  }
  const group = given as ProcessGroup;
  const alone = groupOfRanks([dist.group.rank]);
  if (strategy === 'NO_SHARD') return [alone, group];
  if (!isHybrid(strategy)) return [group, alone];
  const { row, column } = foldGroup(group, shardDegree(options, group.size));
  return [row, column];
}

function groupsOf(mesh: DeviceMesh, strategy: ShardingStrategy): ProcessGroup | readonly [ProcessGroup, ProcessGroup] {
  const wanted = isHybrid(strategy) ? 2 : 1;
  if (mesh.shape.length !== wanted) {
    throw new Error(
      `FSDP: ${strategy} wants a mesh of ${wanted === 2 ? 'two axes, replicate and shard' : 'one axis'}, but it has ${mesh.shape.length}`,
    );
  }
  return wanted === 1 ? mesh.getGroup(0) : [mesh.getGroup(1), mesh.getGroup(0)];
}
