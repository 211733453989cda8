// What a command that starts ranks is to do: start the ranks of this host, one launcher on each, or be the one rank that
// another launcher made of it. Never both, so that one job does not become several.
import { availableParallelism } from 'node:os';
import type { Variables } from '../environment.ts';
import { isRank, type RankEnvironment, rankEnvironment } from './environment.ts';
import { isPod, podNode } from './launchers/kubernetes.ts';
import { sageMakerNode } from './launchers/sagemaker.ts';
import { slurmNodeList } from './launchers/slurm.ts';
import { defaultPort, type NodeEnvironment, type NumRanks, port, type Sourced } from './launchers/values.ts';

/** Flags that say where a launcher stands. What is left out comes from the environment. */
export interface LaunchFlags {
  nproc?: NumRanks | undefined;
  nnodes?: number | undefined;
  nodeRank?: number | undefined;
  masterAddress?: string | undefined;
  masterPort?: number | undefined;
}

/** Flags that contradict each other or the environment. */
export class LaunchError extends Error {}

export interface RankPlan {
  kind: 'rank';
  environment: RankEnvironment;
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

function masterOf(flags: LaunchFlags): Pick<NodeEnvironment, 'masterAddr' | 'masterPort'> {
  const address = flags.masterAddress === undefined ? undefined : parseAddress(flags.masterAddress);
  const { masterPort } = flags;
  if (masterPort !== undefined && address?.port !== undefined && address.port !== masterPort)
    throw new LaunchError(`--master-port ${masterPort} contradicts --master-address ${flags.masterAddress}`);
  return {
    masterAddr: address && { value: address.host, source: '--master-address' },
    masterPort:
      masterPort !== undefined
        ? { value: masterPort, source: '--master-port' }
        : address?.port === undefined
          ? undefined
          : { value: address.port, source: '--master-address' },
  };
}

/** Variables of ranks, by launcher, as they are named to people. */
const names: Readonly<Record<RankEnvironment['source'], readonly [rank: string, size: string, master: string]>> = {
  torchrun: ['RANK', 'WORLD_SIZE', 'MASTER_ADDR'],
  slurm: ['SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_STEP_NODELIST'],
  openmpi: ['OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'MASTER_ADDR'],
  pmi: ['PMI_RANK', 'PMI_SIZE', 'MASTER_ADDR'],
  single: ['', '', ''],
};

function beRank(flags: LaunchFlags, env: Variables): RankPlan {
  const { masterAddr, masterPort } = masterOf(flags);
  const changed: Record<string, string> = {};
  if (masterAddr) changed.MASTER_ADDR = masterAddr.value;
  if (masterPort) changed.MASTER_PORT = String(masterPort.value);
  const environment = rankEnvironment({ ...env, ...changed });
  const given = flags.nnodes !== undefined ? '--nnodes' : flags.nodeRank !== undefined ? '--node-rank' : undefined;
  if (given) {
    const [rank, size] = names[environment.source];
    throw new LaunchError(
      `${given} is for one launcher on each host, but this process is rank ${environment.rank} of ${environment.worldSize} ` +
        `(${rank}, ${size}): leave ${given} out to join as that rank, or add --nproc and start one process on each host`,
    );
  }
  return { kind: 'rank', environment, env: changed };
}

/** A launcher's place, where another launcher has started one process on each host. */
function taskAsNode(nproc: NumRanks, flags: LaunchFlags, env: Variables): Partial<NodeEnvironment> {
  const addressless = masterOf(flags).masterAddr ? { ...env, MASTER_ADDR: masterOf(flags).masterAddr!.value } : env;
  const { source, rank, worldSize, localWorldSize, ranksPerNode, masterAddr, masterPort } =
    rankEnvironment(addressless);
  if (worldSize === 1) return {};
  const [rankName, sizeName, masterName] = names[source];
  const counts = ranksPerNode ?? [localWorldSize];
  if (counts.some((tasks) => tasks > 1)) {
    const where = ranksPerNode ? `${ranksPerNode.join(', ')} on its hosts` : `${localWorldSize} on this host`;
    throw new LaunchError(
      `this process is one of ${worldSize} (${sizeName}), ${where}, and --nproc ${nproc} would start ${nproc} ranks in each of them: ` +
        'leave --nproc out to make each process a rank, or start one process on each host',
    );
  }
  const addressName = env.MASTER_ADDR
    ? 'MASTER_ADDR'
    : source === 'slurm'
      ? (slurmNodeList(env) ?? masterName)
      : masterName;
  const portName = env.MASTER_PORT ? 'MASTER_PORT' : source === 'slurm' ? 'SLURM_JOB_ID' : 'default';
  return {
    nnodes: { value: worldSize, source: sizeName },
    nodeRank: { value: rank, source: rankName },
    masterAddr: { value: masterAddr, source: addressName },
    masterPort: { value: masterPort, source: portName },
  };
}

/**
 * What the flags and the environment ask for. `otherwise`: ranks on this host if nobody says how many; none is an error.
 * Errors: LaunchError for flags, ERR_ENVIRONMENT for variables.
 */
export function planLaunch(flags: LaunchFlags, env: Variables, otherwise?: number): LaunchPlan {
  const asRank = isRank(env);
  if (asRank && flags.nproc === undefined) return beRank(flags, env);
  const found: Partial<NodeEnvironment> = asRank
    ? taskAsNode(flags.nproc!, flags, env)
    : isPod(env)
      ? podNode(env)
      : (sageMakerNode(env) ?? {});
  const flag = <T>(value: T | undefined, source: string): Sourced<T> | undefined =>
    value === undefined ? undefined : { value, source };
  const nproc = flag(flags.nproc, '--nproc') ?? found.nproc ?? flag(otherwise, 'default');
  if (!nproc) throw new LaunchError('--nproc N is missing');
  const nnodes = flag(flags.nnodes, '--nnodes') ?? found.nnodes ?? { value: 1, source: 'default' };
  const nodeRank =
    flag(flags.nodeRank, '--node-rank') ?? found.nodeRank ?? flag(nnodes.value === 1 ? 0 : undefined, 'default');
  if (!nodeRank)
    throw new LaunchError(`--node-rank R is missing: the number of this host, from 0 to ${nnodes.value - 1}`);
  if (nodeRank.value >= nnodes.value)
    throw new LaunchError(
      `${nodeRank.source} is ${nodeRank.value}, but ${nnodes.value} nodes (${nnodes.source}) have numbers from 0 to ${nnodes.value - 1}`,
    );
  const given = masterOf(flags);
  if (nnodes.value === 1) {
    const masterPort = given.masterPort ?? flag(env.MASTER_PORT ? port(env, 'MASTER_PORT') : undefined, 'MASTER_PORT');
    return { kind: 'node', nnodes, nodeRank, nproc, masterAddr: undefined, masterPort };
  }
  const masterAddr = given.masterAddr ?? found.masterAddr ?? flag(env.MASTER_ADDR || undefined, 'MASTER_ADDR');
  if (!masterAddr)
    throw new LaunchError('--master-address HOST[:PORT] is missing: the host of node 0, as the others reach it');
  const masterPort = given.masterPort ??
    found.masterPort ??
    flag(env.MASTER_PORT ? port(env, 'MASTER_PORT') : undefined, 'MASTER_PORT') ?? {
      value: defaultPort,
      source: 'default',
    };
  return { kind: 'node', nnodes, nodeRank, nproc, masterAddr, masterPort };
}

/** One line that says what was understood, each value with its source; undefined where plain flags start one host's ranks. */
export function describePlan(plan: LaunchPlan): string | undefined {
  if (plan.kind === 'rank') {
    const { source, rank, worldSize, localWorldSize, numNodes, masterAddr, masterPort } = plan.environment;
    if (rank !== 0) return undefined; // said once for all ranks
    const [rankName, sizeName] = names[source];
    const nodes = numNodes === undefined ? '' : ` on ${numNodes} node${numNodes === 1 ? '' : 's'}`;
    return (
      `joining as a rank, ${worldSize} (${sizeName}) in all${nodes}, ${localWorldSize} on this host; this is rank 0 (${rankName}), ` +
      `master ${showAddress(masterAddr, masterPort)}`
    );
  }
  const { nnodes, nodeRank, nproc, masterAddr, masterPort } = plan;
  const isPlain =
    nnodes.value === 1 &&
    (nproc.source === '--nproc' || nproc.source === 'default') &&
    nnodes.source.match(/^(--nnodes|default)$/);
  if (isPlain) return undefined;
  const show = ({ value, source }: Sourced<number | string>): string => `${value} (${source})`;
  const master = masterAddr && masterPort ? `, master ${show(masterAddr)}, port ${show(masterPort)}` : '';
  return `node ${show(nodeRank)} of ${show(nnodes)}, ${nproc.value} rank${nproc.value === 1 ? '' : 's'} here (${nproc.source})${master}`;
}

export const showAddress = (host: string, port: number): string =>
  host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;

/** The number behind `gpu`, `cpu` (one for each core) and `auto` (the GPUs, or 1 without any). */
export async function countRanks(wanted: NumRanks, countDevices: () => Promise<number>): Promise<number> {
  if (typeof wanted === 'number') return wanted;
  if (wanted === 'cpu') return availableParallelism();
  const devices = await countDevices();
  if (wanted === 'gpu' && devices === 0) throw new LaunchError('--nproc gpu: no GPU is visible on this host');
  return Math.max(1, devices);
}
