// Slurm: the tasks of a step (srun) are ranks. An sbatch script without srun has task variables too, but no step: it is one
// process, and no rank.
import type { Variables } from '../../environment.ts';
import { count, defaultPort, EnvironmentError, firstSet, type Place, readInteger } from './values.ts';

export const isSlurmRank = (env: Variables): boolean =>
  env.SLURM_STEP_ID !== undefined && env.SLURM_PROCID !== undefined;

/** Commas outside brackets. */
const separators = /,(?![^[\]]*\])/;

function expandRange(range: string, fail: () => never): string[] {
  const match = /^(\d+)(?:-(\d+))?$/.exec(range);
  if (!match) fail();
  const [, from = '', to = from] = match;
  const numbers = Number(to) - Number(from) + 1;
  if (numbers < 1 || numbers > 1e6) fail();
  return Array.from({ length: numbers }, (_, i) => String(Number(from) + i).padStart(from.length, '0'));
}

/** Every host of a Slurm node list in its order: `n[08-10],x[1-2]y[1,3]` → n08, n09, n10, x1y1, x1y3, x2y1, x2y3. */
export function slurmHosts(list: string, name = 'SLURM_STEP_NODELIST'): string[] {
  const fail = (): never => {
    throw new EnvironmentError(`${name} "${list}" is not a node list such as "node[03-07,12]" or "a,b"`);
  };
  return list
    .trim()
    .split(separators)
    .flatMap((entry) => {
      if (!/^[^,[\]\s]*(\[[\d,-]+\][^,[\]\s]*)*$/.test(entry) || entry === '') fail();
      let hosts = [''];
      for (const part of entry.split(/(\[[^\]]*\])/)) {
        const ends = part.startsWith('[')
          ? part
              .slice(1, -1)
              .split(',')
              .flatMap((range) => expandRange(range, fail))
          : [part];
        hosts = hosts.flatMap((host) => ends.map((end) => host + end));
      }
      return hosts;
    });
}

/** Tasks of each node from Slurm's compressed list, `4(x2),3` → 4, 4, 3. */
export function slurmTasks(list: string, name = 'SLURM_STEP_TASKS_PER_NODE'): number[] {
  return list.split(',').flatMap((entry) => {
    const match = /^(\d+)(?:\(x(\d+)\))?$/.exec(entry.trim());
    if (!match) throw new EnvironmentError(`${name} "${list}" is not a list of tasks per node such as "2(x3),1"`);
    return Array.from({ length: Number(match[2] ?? 1) }, () => Number(match[1]));
  });
}

export function slurmPlace(env: Variables): Place {
  const worldSize = count(env, firstSet(env, 'SLURM_STEP_NUM_TASKS') ?? 'SLURM_NTASKS');
  const rank = readInteger(env, 'SLURM_PROCID', 0, worldSize - 1);
  const listName = firstSet(env, 'SLURM_STEP_TASKS_PER_NODE') ?? 'SLURM_TASKS_PER_NODE';
  const list = env[listName];
  if (list === undefined || list === '') {
    if (worldSize === 1) return { rank, worldSize, localRank: 0, localWorldSize: 1 };
    throw new EnvironmentError(
      `task ${rank} of ${worldSize} does not know how many tasks are on its node: SLURM_STEP_TASKS_PER_NODE is not set`,
    );
  }
  const ranksPerNode = slurmTasks(list, listName);
  const sum = ranksPerNode.reduce((a, b) => a + b, 0);
  if (sum !== worldSize)
    throw new EnvironmentError(
      `${listName} "${list}" has ${sum} tasks, but the step has ${worldSize} (SLURM_STEP_NUM_TASKS or SLURM_NTASKS)`,
    );
  const node = readInteger(env, 'SLURM_NODEID', 0, ranksPerNode.length - 1);
  const localWorldSize = ranksPerNode[node]!;
  const localRank = readInteger(env, 'SLURM_LOCALID', 0, localWorldSize - 1);
  return { rank, worldSize, localRank, localWorldSize, numNodes: ranksPerNode.length, node, ranksPerNode };
}

/** The variable that holds the step's nodes, whose first has rank 0. */
export const slurmNodeList = (env: Variables): string | undefined =>
  firstSet(env, 'SLURM_STEP_NODELIST', 'SLURM_JOB_NODELIST', 'SLURM_NODELIST');

/** Jobs that share a node do not share a port. */
export const slurmPort = (env: Variables): number => defaultPort + 2 * (Number(env.SLURM_JOB_ID ?? 0) % 1000);
