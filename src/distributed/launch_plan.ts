// What a command that starts ranks is to do: start the ranks of this host, one launcher on each, or be the one rank that
// another launcher made of it. Never both, so that one job does not become several.
import { availableParallelism } from 'node:os';
import type { Variables } from '../environment.ts';
import { isRank, type RankEnvironment, rankEnvironment } from './environment.ts';
import { isPod, podNode } from './launchers/kubernetes.ts';
import { sageMakerNode } from './launchers/sagemaker.ts';
import { slurmNodeList } from './launchers/slurm.ts';
import {
  defaultPort,
  EnvironmentError,
  type NodeEnvironment,
  type NumRanks,
  port,
  type Sourced,
} from './launchers/values.ts';

/** Flags that say where a launcher stands. What is left out comes from the environment. */
export interface LaunchFlags {
  nproc?: NumRanks | undefined;
  nnodes?: number | undefined;
  nodeRank?: number | undefined;
  masterAddress?: string | undefined;
  masterPort?: number | undefined;
}

/** Names a flag as the user wrote it: on the command line, or in a file. */
export type NameOf = (key: keyof LaunchFlags) => string;

export const flagNames: Readonly<Record<keyof LaunchFlags, string>> = {
  nproc: '--nproc',
  nnodes: '--nnodes',
  nodeRank: '--node-rank',
  masterAddress: '--master-address',
  masterPort: '--master-port',
};

/** Flags that are missing, or contradict each other. */
export class LaunchError extends Error {}

export interface RankPlan {
  kind: 'rank';
  environment: RankEnvironment;
  /** Where its master address and port are from. */
  sources: Readonly<Record<'masterAddr' | 'masterPort', string>>;
  /** Variables that the flags change. */
  env: Readonly<Record<string, string>>;
}

/** One launcher on each of `nnodes` hosts. */
export interface NodePlan {
  kind: 'node';
  nnodes: Sourced<number>;
  nodeRank: Sourced<number>;
  nproc: Sourced<NumRanks>;
  /** Undefined on one host, where none is needed. */
  masterAddr: Sourced<string> | undefined;
  masterPort: Sourced<number> | undefined;
  /** Flags alone ask for the ranks of one host. */
  isPlain: boolean;
}

export type LaunchPlan = RankPlan | NodePlan;

/** `HOST`, `HOST:PORT`, an IPv6 address, or `[IPv6]:PORT`. */
export function parseAddress(text: string): { host: string; port: number | undefined } {
  const match = /^\[([\da-fA-F:.%\w]+)\](?::(\d+))?$/.exec(text) ?? /^([^:[\]\s]+)(?::(\d+))?$/.exec(text);
  const isBareIpv6 = /^[\da-fA-F:.]+(%\w+)?$/.test(text) && text.split(':').length > 2;
  const found = isBareIpv6 ? { host: text, port: undefined } : match && { host: match[1]!, port: match[2] };
  const number = found?.port === undefined ? undefined : Number(found.port);
  if (!found || (number !== undefined && (number < 1 || number > 65534)))
    throw new LaunchError(`--master-address needs HOST, HOST:PORT or [IPv6]:PORT but got "${text}"`);
  return { host: found.host, port: number };
}

const sourced = <T>(value: T | undefined, source: string): Sourced<T> | undefined =>
  value === undefined ? undefined : { value, source };

function masterOf(flags: LaunchFlags, nameOf: NameOf): Pick<NodeEnvironment, 'masterAddr' | 'masterPort'> {
  const { masterAddress, masterPort } = flags;
  const [addressName, portName] = [nameOf('masterAddress'), nameOf('masterPort')];
  const address = masterAddress === undefined ? undefined : parseAddress(masterAddress);
  if (masterPort !== undefined && address?.port !== undefined && address.port !== masterPort)
    throw new LaunchError(`${portName} ${masterPort} contradicts ${addressName} ${masterAddress}`);
  return {
    masterAddr: sourced(address?.host, addressName),
    masterPort: sourced(masterPort, portName) ?? sourced(address?.port, addressName),
  };
}

/** Variables of ranks, by launcher, as they are named to people. */
const names: Readonly<Record<RankEnvironment['source'], readonly [rank: string, size: string]>> = {
  torchrun: ['RANK', 'WORLD_SIZE'],
  slurm: ['SLURM_PROCID', 'SLURM_NTASKS'],
  openmpi: ['OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE'],
  pmi: ['PMI_RANK', 'PMI_SIZE'],
  single: ['', ''],
};

/** Where rankEnvironment has the master from. */
function masterSources(source: RankEnvironment['source'], env: Variables): RankPlan['sources'] {
  const isSlurm = source === 'slurm';
  return {
    masterAddr: env.MASTER_ADDR ? 'MASTER_ADDR' : ((isSlurm ? slurmNodeList(env) : undefined) ?? 'default'),
    masterPort: env.MASTER_PORT ? 'MASTER_PORT' : isSlurm ? 'SLURM_JOB_ID' : 'default',
  };
}

function beRank(flags: LaunchFlags, env: Variables, nameOf: NameOf): RankPlan {
  const { masterAddr, masterPort } = masterOf(flags, nameOf);
  const changed: Record<string, string> = {};
  if (masterAddr) changed.MASTER_ADDR = masterAddr.value;
  if (masterPort) changed.MASTER_PORT = String(masterPort.value);
  const environment = rankEnvironment({ ...env, ...changed });
  const key = (['nnodes', 'nodeRank'] as const).find((one) => flags[one] !== undefined);
  if (key) {
    const given = nameOf(key);
    const [rank, size] = names[environment.source];
    throw new EnvironmentError(
      `${given} is for one launcher on each host, but this process is rank ${environment.rank} of ${environment.worldSize} ` +
        `(${rank}, ${size}): leave ${given} out to join as that rank, or add --nproc and start one process on each host`,
    );
  }
  const found = masterSources(environment.source, env);
  const sources = {
    masterAddr: masterAddr?.source ?? found.masterAddr,
    masterPort: masterPort?.source ?? found.masterPort,
  };
  return { kind: 'rank', environment, sources, env: changed };
}

/** A launcher's place, where another launcher has started one process on each host. */
function taskAsNode(nproc: NumRanks, masterHost: string | undefined, env: Variables): Partial<NodeEnvironment> {
  const known = masterHost === undefined ? env : { ...env, MASTER_ADDR: masterHost };
  const { source, rank, worldSize, localWorldSize, ranksPerNode, masterAddr, masterPort } = rankEnvironment(known);
  if (worldSize === 1) return {};
  const [rankName, sizeName] = names[source];
  const counts = ranksPerNode ?? [localWorldSize];
  if (counts.some((tasks) => tasks > 1)) {
    const where = ranksPerNode ? `${ranksPerNode.join(', ')} on its hosts` : `${localWorldSize} on this host`;
    throw new EnvironmentError(
      `this process is one of ${worldSize} (${sizeName}), ${where}, and --nproc ${nproc} would start ${nproc} ranks in each of them: ` +
        'leave --nproc out to make each process a rank, or start one process on each host',
    );
  }
  const sources = masterSources(source, env);
  return {
    nnodes: { value: worldSize, source: sizeName },
    nodeRank: { value: rank, source: rankName },
    masterAddr: { value: masterAddr, source: sources.masterAddr },
    masterPort: { value: masterPort, source: sources.masterPort },
  };
}

/**
 * What the flags and the environment ask for. `otherwise`: ranks on this host if nobody says how many; none is an error.
 * Errors: LaunchError for flags, ERR_ENVIRONMENT for variables and flags that they contradict.
 */
export function planLaunch(
  flags: LaunchFlags,
  env: Variables,
  { otherwise, nameOf = (key) => flagNames[key] }: { otherwise?: number; nameOf?: NameOf } = {},
): LaunchPlan {
  const asRank = isRank(env);
  if (asRank && flags.nproc === undefined) return beRank(flags, env, nameOf);
  const given = masterOf(flags, nameOf);
  const found: Partial<NodeEnvironment> = asRank
    ? taskAsNode(flags.nproc!, given.masterAddr?.value, env)
    : isPod(env)
      ? podNode(env)
      : (sageMakerNode(env) ?? {});
  const nproc = sourced(flags.nproc, nameOf('nproc')) ?? found.nproc ?? sourced(otherwise, 'default');
  if (!nproc) throw new LaunchError('--nproc N is missing');
  const nnodes = sourced(flags.nnodes, nameOf('nnodes')) ?? found.nnodes ?? { value: 1, source: 'default' };
  const nodeRank =
    sourced(flags.nodeRank, nameOf('nodeRank')) ??
    found.nodeRank ??
    sourced(nnodes.value === 1 ? 0 : undefined, 'default');
  if (!nodeRank)
    throw new LaunchError(`--node-rank R is missing: the number of this host, from 0 to ${nnodes.value - 1}`);
  if (nodeRank.value >= nnodes.value)
    throw new LaunchError(
      `${nodeRank.source} is ${nodeRank.value}, but ${nnodes.value} nodes (${nnodes.source}) have numbers from 0 to ${nnodes.value - 1}`,
    );
  const ofEnv = sourced(env.MASTER_PORT ? port(env, 'MASTER_PORT') : undefined, 'MASTER_PORT');
  if (nnodes.value === 1) {
    const isPlain = !found.nnodes && !found.nproc;
    const masterPort = given.masterPort ?? ofEnv;
    return { kind: 'node', nnodes, nodeRank, nproc, masterAddr: undefined, masterPort, isPlain };
  }
  const masterAddr = given.masterAddr ?? found.masterAddr ?? sourced(env.MASTER_ADDR || undefined, 'MASTER_ADDR');
  if (!masterAddr)
    throw new LaunchError('--master-address HOST[:PORT] is missing: the host of node 0, as the others reach it');
  const masterPort = given.masterPort ?? found.masterPort ?? ofEnv ?? { value: defaultPort, source: 'default' };
  return { kind: 'node', nnodes, nodeRank, nproc, masterAddr, masterPort, isPlain: false };
}

/** One line that says what was understood, each value with its source; undefined where plain flags start one host's ranks. */
export function describePlan(plan: LaunchPlan): string | undefined {
  const show = ({ value, source }: Sourced<number | string>): string => `${value} (${source})`;
  if (plan.kind === 'rank') {
    const { sources } = plan;
    const { source, rank, worldSize, localWorldSize, numNodes, masterAddr, masterPort } = plan.environment;
    if (rank !== 0) return undefined; // said once for all ranks
    const [rankName, sizeName] = names[source];
    const nodes = numNodes === undefined ? '' : ` on ${numNodes} node${numNodes === 1 ? '' : 's'}`;
    return (
      `joining as a rank, ${worldSize} (${sizeName}) in all${nodes}, ${localWorldSize} on this host; this is rank 0 (${rankName}), ` +
      `master ${masterAddr} (${sources.masterAddr}), port ${masterPort} (${sources.masterPort})`
    );
  }
  const { nnodes, nodeRank, nproc, masterAddr, masterPort, isPlain } = plan;
  if (isPlain) return undefined;
  const master = masterAddr && masterPort ? `, master ${show(masterAddr)}, port ${show(masterPort)}` : '';
  return `node ${show(nodeRank)} of ${show(nnodes)}, ${nproc.value} rank${nproc.value === 1 ? '' : 's'} here (${nproc.source})${master}`;
}

/** The number behind `gpu`, `cpu` (one for each core) and `auto` (the GPUs, or 1 without any). */
export async function countRanks(wanted: NumRanks, countDevices: () => Promise<number>): Promise<number> {
  if (typeof wanted === 'number') return wanted;
  if (wanted === 'cpu') return availableParallelism();
  const devices = await countDevices();
  if (wanted === 'gpu' && devices === 0) throw new LaunchError('--nproc gpu: no GPU is visible on this host');
  return Math.max(1, devices);
}
