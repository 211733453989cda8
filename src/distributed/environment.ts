// Who am I: rank, world and address of rank 0, as a launcher put them into the environment. No rank there: a world of one. A
// partial or wrong environment is an error that says what was got and wanted, and so is one that describes a host of several:
// each would be a job of its own.

import { type Variables as Env, variables } from '../environment.ts';
import { isPod, podNode } from './launchers/kubernetes.ts';
import { isOpenMpiRank, isPmiRank, openMpiPlace, pmiPlace } from './launchers/mpi.ts';
import { sageMakerNode } from './launchers/sagemaker.ts';
import { isSlurmRank, slurmHosts, slurmNodeList, slurmPlace, slurmPort } from './launchers/slurm.ts';
import { torchrunPlace } from './launchers/torchrun.ts';
import { defaultPort, EnvironmentError, isLoopback, type Place, port } from './launchers/values.ts';

export interface RankEnvironment extends Place {
  /** Which launcher's variables were used; `single` for a world of one without any. */
  source: 'torchrun' | 'slurm' | 'openmpi' | 'pmi' | 'single';
  masterAddr: string;
  masterPort: number;
  /** Port of the rendezvous store: RANKZERO_PORT, else the master port + 1. */
  storePort: number;
  /** All ranks are on this host. */
  isOneHost: boolean;
}

type Launcher = RankEnvironment['source'];

const places: Readonly<Record<Launcher, (env: Env) => Place>> = {
  torchrun: torchrunPlace,
  openmpi: openMpiPlace,
  pmi: pmiPlace,
  slurm: slurmPlace,
  single: () => ({ rank: 0, worldSize: 1, localRank: 0, localWorldSize: 1 }),
};

/** Whose variables make this process a rank. An mpirun inside a Slurm job inherits the variables of a step, so it is asked first. */
function launcherOf(env: Env): Launcher {
  if (env.RANK !== undefined) return 'torchrun';
  if (isOpenMpiRank(env)) return 'openmpi';
  if (isPmiRank(env)) return 'pmi';
  if (isSlurmRank(env)) return 'slurm';
  // Scripts of Slurm jobs export WORLD_SIZE for the ranks that they start.
  if (env.WORLD_SIZE !== undefined && env.SLURM_JOB_ID === undefined && !isPod(env)) return 'torchrun';
  return 'single';
}

/** @internal Whether a launcher started this process as a rank. The variables of a pod are not those of a rank. */
export const isRank = (env: Env): boolean => !isHostOfRanks(env) && launcherOf(env) !== 'single';

/** A pod with one rank, which has a number, is that rank. */
const isHostOfRanks = (env: Env): boolean => isPod(env) && !(env.RANK !== undefined && env.PET_NPROC_PER_NODE === '1');

function masterAddress(env: Env, source: Launcher, place: Place): string {
  if (env.MASTER_ADDR) return env.MASTER_ADDR;
  if (source === 'slurm') {
    const name = slurmNodeList(env);
    if (name) return slurmHosts(env[name]!, name)[0]!;
  }
  if (place.localWorldSize === place.worldSize) return '127.0.0.1';
  const hint =
    source === 'slurm'
      ? 'SLURM_STEP_NODELIST or MASTER_ADDR'
      : `MASTER_ADDR (mpirun ${source === 'pmi' ? '-env MASTER_ADDR host' : '-x MASTER_ADDR=host'})`;
  throw new EnvironmentError(
    `rank ${place.rank} of ${place.worldSize} does not know the host of rank 0: ${hint} is not set, and only ${place.localWorldSize} ranks are on this host`,
  );
}

/** One of several hosts, without the number of a rank: a program that goes on would be a job for itself on each of them. */
function refuseHost(env: Env): void {
  const node = isHostOfRanks(env) ? podNode(env) : env.RANK === undefined ? sageMakerNode(env) : undefined;
  if (!node) return;
  const { nnodes, nodeRank, nproc } = node;
  if (nnodes.value === 1 && env.RANK === undefined) return;
  throw new EnvironmentError(
    `this process is host ${nodeRank.value} (${nodeRank.source}) of ${nnodes.value} (${nnodes.source})` +
      `${nproc ? `, which is to have ${nproc.value} ranks (${nproc.source})` : ''}, and not a rank: start the ranks with ` +
      '`rankzero run script.js`, which reads these variables',
  );
}

/** Reads the rank's environment. Errors: ERR_ENVIRONMENT. */
export function rankEnvironment(env: Env = variables()): RankEnvironment {
  const source = isRank(env) ? launcherOf(env) : 'single';
  if (source === 'single') refuseHost(env);
  const place = places[source](env);
  const masterAddr = place.worldSize === 1 ? '127.0.0.1' : masterAddress(env, source, place);
  const jobPort = source === 'slurm' ? slurmPort(env) : defaultPort;
  const masterPort = env.MASTER_PORT ? port(env, 'MASTER_PORT') : jobPort;
  const storePort = env.RANKZERO_PORT !== undefined ? port(env, 'RANKZERO_PORT') : masterPort + 1;
  if (storePort > 65535) {
    throw new EnvironmentError(
      `MASTER_PORT ${masterPort} leaves no port after it for the rendezvous store: set RANKZERO_PORT`,
    );
  }
  const isOneHost = place.localWorldSize === place.worldSize || isLoopback(masterAddr);
  return { source, ...place, masterAddr, masterPort, storePort, isOneHost };
}

export { EnvironmentError } from './launchers/values.ts';
