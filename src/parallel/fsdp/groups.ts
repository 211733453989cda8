// The two process groups of a strategy.
import type { DeviceMesh } from '../../distributed/device_mesh.ts';
import { dist } from '../../distributed/index.ts';
import type { ProcessGroup } from '../../distributed/process_group.ts';
import { state } from '../../distributed/state.ts';
import type { FsdpOptions } from './options.ts';
import type { UnitGroups } from './unit.ts';

const isHybrid = (strategy: string): boolean => strategy === 'HYBRID_SHARD' || strategy === '_HYBRID_SHARD_ZERO2';

/** What init asked for takes the place of the strategy. */
export function withInitDegrees(options: FsdpOptions): FsdpOptions {
  const degree = state.hybridShardDegree;
  if (degree === 0 || options.deviceMesh || options.processGroup) return options;
  if (degree === 1) return { ...options, shardingStrategy: 'NO_SHARD' };
  const keeps = options.shardingStrategy === 'SHARD_GRAD_OP' || options.shardingStrategy === '_HYBRID_SHARD_ZERO2';
  return { ...options, shardingStrategy: keeps ? '_HYBRID_SHARD_ZERO2' : 'HYBRID_SHARD', hybridShardDegree: degree };
}

/** The groups of this rank; `tensor` is the tensor-parallel one of the model. Errors name the degrees. Collective. */
export function resolveGroups(options: FsdpOptions, tensor: ProcessGroup | undefined): UnitGroups {
  const pair = shardAndReplicate(options);
  if (!tensor || tensor.size === 1) return { ...pair, tensor: undefined, grid: pair.shard };
  const offsets = tensor.ranks.map((rank) => rank - dist.group.rank);
  const ranks = pair.shard.ranks.flatMap((rank) => offsets.map((offset) => rank + offset));
  return { ...pair, tensor, grid: dist.group.split(ranks)! };
}

function shardAndReplicate(options: FsdpOptions): Pick<UnitGroups, 'shard' | 'replicate'> {
  const strategy = options.shardingStrategy ?? 'FULL_SHARD';
  if (options.deviceMesh && options.processGroup)
    throw new Error('FSDP: give a deviceMesh or a processGroup, not both');
  const given = options.deviceMesh ? groupsOf(options.deviceMesh, strategy) : options.processGroup;
  const alone = (): ProcessGroup => dist.group.split([dist.group.rank])!;
  if (Array.isArray(given)) {
    if (!isHybrid(strategy))
      throw new Error(`FSDP: a pair of process groups is for hybrid strategies, not ${strategy}`);
    const [shard, replicate] = given as [ProcessGroup, ProcessGroup];
    return { shard, replicate };
  }
  const world = (given as ProcessGroup | undefined) ?? state.dpProcessGroup ?? dist.group;
  if (strategy === 'NO_SHARD') return { shard: alone(), replicate: world };
  if (!isHybrid(strategy)) return { shard: world, replicate: alone() };
  const degree = options.hybridShardDegree ?? dist.getLocalWorldSize() / state.tpSize;
  if (!Number.isInteger(degree) || degree < 1 || world.size % degree !== 0) {
    throw new Error(`FSDP: the shard degree ${degree} of ${strategy} must divide the ${world.size} ranks`);
  }
  const first = Math.floor(world.rank / degree) * degree;
  const shard = Array.from({ length: degree }, (_, i) => first + i);
  const replicate = Array.from({ length: world.size / degree }, (_, i) => (world.rank % degree) + i * degree);
  return { shard: world.split(shard)!, replicate: world.split(replicate)! };
}

function groupsOf(mesh: DeviceMesh, strategy: string): ProcessGroup | readonly [ProcessGroup, ProcessGroup] {
  const wanted = isHybrid(strategy) ? 2 : 1;
  if (mesh.shape.length !== wanted) {
    throw new Error(
      `FSDP: ${strategy} wants a mesh of ${wanted === 2 ? 'two axes, replicate and shard' : 'one axis'}, but it has ${mesh.shape.length}`,
    );
  }
  return wanted === 1 ? mesh.getGroup(0) : [mesh.getGroup(1), mesh.getGroup(0)];
}
