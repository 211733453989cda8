// Who am I: rank, world and address of rank 0, as torchrun, Slurm or Open MPI put them into the environment. No rank
// there: a world of one. A partial or wrong environment is an error that says what was got and what is wanted.

import { type Variables as Env, variables } from '../environment.ts';

export interface RankEnvironment {
  /** Which launcher's variables were used; `single` for a world of one without any. */
  source: 'torchrun' | 'slurm' | 'openmpi' | 'single';
  rank: number;
  worldSize: number;
  localRank: number;
  /** Ranks on this host. */
  localWorldSize: number;
  masterAddr: string;
  masterPort: number;
  /** Port of the rendezvous store: RANKZERO_PORT, else the master port + 1. */
  storePort: number;
  /** All ranks are on this host. */
  isOneHost: boolean;
}

const defaultPort = 29500;
const isLoopback = (host: string): boolean => host === 'localhost' || host === '::1' || host.startsWith('127.');

export class EnvironmentError extends Error {
  readonly code = 'ERR_ENVIRONMENT';
}

function readInteger(env: Env, name: string, least: number, most: number): number {
  const text = env[name];
  const value = Number(text);
  if (text === undefined || text.trim() === '' || !Number.isInteger(value) || value < least || value > most) {
    const range = most === Number.MAX_SAFE_INTEGER ? `of ${least} or more` : `from ${least} to ${most}`;
    throw new EnvironmentError(
      `${name} must be a whole number ${range} but is ${text === undefined ? 'not set' : `"${text}"`}`,
    );
  }
  return value;
}

const count = (env: Env, name: string): number => readInteger(env, name, 1, Number.MAX_SAFE_INTEGER);
const port = (env: Env, name: string): number => readInteger(env, name, 1, 65535);

interface Place {
  rank: number;
  worldSize: number;
  localRank: number;
  localWorldSize: number;
}

/** The first host of a Slurm node list, e.g. `node[03-07,12],gpu1` → `node03`. */
export function firstSlurmHost(nodeList: string): string {
  const match = /^([^,[\]\s]+)(?:\[(\d+)[\d,-]*\]([^,[\]\s]*))?(?:,|$)/.exec(nodeList.trim());
  if (!match)
    throw new EnvironmentError(`SLURM_JOB_NODELIST "${nodeList}" is not a node list such as "node[03-07,12]" or "a,b"`);
  return `${match[1]}${match[2] ?? ''}${match[3] ?? ''}`;
}

/** Tasks on the first node of Slurm's compressed list, e.g. `4(x2),3` → 4. */
function firstTaskCount(text: string | undefined): number | undefined {
  const value = Number.parseInt(text ?? '', 10);
  return value > 0 ? value : undefined;
}

function torchrun(env: Env): Place {
  const wanted = ['RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'];
  const isAlone = env.RANK !== undefined && env.WORLD_SIZE === '1';
  const missing = isAlone ? [] : wanted.filter((name) => env[name] === undefined);
  if (missing.length > 0) {
    const got = wanted.filter((name) => env[name] !== undefined).map((name) => `${name}=${env[name]}`);
    throw new EnvironmentError(
      `the environment of a rank is incomplete: ${got.join(', ')} is set but ${missing.join(', ')} is not. ` +
        'Start ranks with `rankzero run --nproc N script.js`, or set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT',
    );
  }
  const worldSize = count(env, 'WORLD_SIZE');
  const rank = readInteger(env, 'RANK', 0, worldSize - 1);
  const oneHost = isLoopback(env.MASTER_ADDR ?? '127.0.0.1');
  const localWorldSize =
    env.LOCAL_WORLD_SIZE !== undefined ? readInteger(env, 'LOCAL_WORLD_SIZE', 1, worldSize) : oneHost ? worldSize : 1;
  const localRank =
    env.LOCAL_RANK !== undefined
      ? readInteger(env, 'LOCAL_RANK', 0, localWorldSize - 1)
      : oneHost
        ? rank
        : rank % localWorldSize;
  return { rank, worldSize, localRank, localWorldSize };
}

function slurm(env: Env): Place {
  const worldSize = count(env, 'SLURM_NTASKS');
  const rank = readInteger(env, 'SLURM_PROCID', 0, worldSize - 1);
  const nodes = env.SLURM_STEP_NUM_NODES ?? env.SLURM_JOB_NUM_NODES ?? env.SLURM_NNODES;
  const perNode = firstTaskCount(
    env.SLURM_STEP_TASKS_PER_NODE ?? env.SLURM_TASKS_PER_NODE ?? env.SLURM_NTASKS_PER_NODE,
  );
  const localWorldSize = nodes === '1' ? worldSize : Math.min(perNode ?? 1, worldSize);
  const localRank = readInteger(env, 'SLURM_LOCALID', 0, worldSize - 1);
  return { rank, worldSize, localRank, localWorldSize: Math.max(localWorldSize, localRank + 1) };
}

function openmpi(env: Env): Place {
  const worldSize = count(env, 'OMPI_COMM_WORLD_SIZE');
  const rank = readInteger(env, 'OMPI_COMM_WORLD_RANK', 0, worldSize - 1);
  const localWorldSize = readInteger(env, 'OMPI_COMM_WORLD_LOCAL_SIZE', 1, worldSize);
  const localRank = readInteger(env, 'OMPI_COMM_WORLD_LOCAL_RANK', 0, localWorldSize - 1);
  return { rank, worldSize, localRank, localWorldSize };
}

function masterAddress(env: Env, source: RankEnvironment['source'], place: Place): string {
  if (env.MASTER_ADDR !== undefined) return env.MASTER_ADDR;
  if (source === 'slurm') {
    const list = env.SLURM_STEP_NODELIST ?? env.SLURM_JOB_NODELIST ?? env.SLURM_NODELIST;
    if (list) return firstSlurmHost(list);
  }
  if (place.localWorldSize === place.worldSize) return '127.0.0.1';
  const hint = source === 'slurm' ? 'SLURM_JOB_NODELIST or MASTER_ADDR' : 'MASTER_ADDR (mpirun -x MASTER_ADDR=host)';
  throw new EnvironmentError(
    `rank ${place.rank} of ${place.worldSize} does not know the host of rank 0: ${hint} is not set, and only ${place.localWorldSize} ranks are on this host`,
  );
}

/** Reads the rank's environment. Errors: ERR_ENVIRONMENT. */
export function rankEnvironment(env: Env = variables()): RankEnvironment {
  let source: RankEnvironment['source'] = 'single';
  let place: Place = { rank: 0, worldSize: 1, localRank: 0, localWorldSize: 1 };
  const isSlurm = env.SLURM_PROCID !== undefined && env.SLURM_NTASKS !== undefined;
  if (env.RANK !== undefined || (env.WORLD_SIZE !== undefined && !isSlurm && env.OMPI_COMM_WORLD_RANK === undefined)) {
    source = 'torchrun';
    place = torchrun(env);
  } else if (env.OMPI_COMM_WORLD_RANK !== undefined) {
    source = 'openmpi';
    place = openmpi(env);
  } else if (isSlurm) {
    source = 'slurm';
    place = slurm(env);
  }
  const masterAddr = place.worldSize === 1 ? '127.0.0.1' : masterAddress(env, source, place);
  const jobPort = defaultPort + (source === 'slurm' ? 2 * (Number(env.SLURM_JOB_ID ?? 0) % 1000) : 0);
  const masterPort = env.MASTER_PORT !== undefined ? port(env, 'MASTER_PORT') : jobPort;
  const storePort = env.RANKZERO_PORT !== undefined ? port(env, 'RANKZERO_PORT') : masterPort + 1;
  if (storePort > 65535) {
    throw new EnvironmentError(
      `MASTER_PORT ${masterPort} leaves no port after it for the rendezvous store: set RANKZERO_PORT`,
    );
  }
  const isOneHost = place.localWorldSize === place.worldSize || isLoopback(masterAddr);
  return { source, ...place, masterAddr, masterPort, storePort, isOneHost };
}
