// Pods of the Kubeflow training operators. Their variables are a host's: RANK of a PyTorchJob counts pods, TrainJobs have
// PET_* alone. The launcher inside the pod makes ranks of them, and sets LOCAL_RANK.
import type { Variables } from '../../environment.ts';
import {
  count,
  EnvironmentError,
  firstSet,
  type NodeEnvironment,
  port,
  readInteger,
  readNumRanks,
  type Sourced,
} from './values.ts';

/** The variables describe the pod, which is to start ranks itself. */
export const isPod = (env: Variables): boolean =>
  env.LOCAL_RANK === undefined && Boolean(env.PET_NPROC_PER_NODE || env.PET_NNODES);

function numPods(env: Variables): Sourced<number> {
  const text = env.PET_NNODES;
  if (text) {
    // torchrun takes a range for elastic jobs.
    const [, least, most] = /^(\d+):(\d+)$/.exec(text) ?? [];
    if (least === undefined) return { value: count(env, 'PET_NNODES'), source: 'PET_NNODES' };
    if (least !== most)
      throw new EnvironmentError(
        `PET_NNODES is ${text}: a job has a fixed number of nodes, so set minReplicas and maxReplicas to the same number`,
      );
    return { value: Number(least), source: 'PET_NNODES' };
  }
  if (env.WORLD_SIZE === undefined) return { value: 1, source: 'no PET_NNODES' };
  // A PyTorchJob multiplies its pods by the ranks of each, where it knows them as a number.
  const worldSize = count(env, 'WORLD_SIZE');
  const nproc = readNumRanks(env, 'PET_NPROC_PER_NODE');
  const each = typeof nproc === 'number' ? nproc : 1;
  if (worldSize % each !== 0)
    throw new EnvironmentError(
      `WORLD_SIZE ${worldSize} is not a multiple of PET_NPROC_PER_NODE ${each}: set PET_NNODES to the number of pods`,
    );
  return {
    value: worldSize / each,
    source: each === 1 ? 'WORLD_SIZE' : 'WORLD_SIZE / PET_NPROC_PER_NODE',
  };
}

/** The place of this pod. */
export function podNode(env: Variables): NodeEnvironment {
  const nnodes = numPods(env);
  const from = <T>(read: (name: string) => T, ...names: string[]): Sourced<T> | undefined => {
    const source = firstSet(env, ...names);
    return source === undefined ? undefined : { value: read(source), source };
  };
  const nodeRank = from((name) => readInteger(env, name, 0, nnodes.value - 1), 'PET_NODE_RANK', 'RANK');
  if (!nodeRank && nnodes.value > 1)
    throw new EnvironmentError(
      `PET_NNODES is ${nnodes.value}, but neither PET_NODE_RANK nor RANK says which pod this is`,
    );
  return {
    nnodes,
    nodeRank: nodeRank ?? { value: 0, source: 'one node' },
    nproc: from((name) => readNumRanks(env, name), 'PET_NPROC_PER_NODE'),
    masterAddr: from((name) => env[name]!, 'PET_MASTER_ADDR', 'MASTER_ADDR'),
    masterPort: from((name) => port(env, name), 'PET_MASTER_PORT', 'MASTER_PORT'),
  };
}
