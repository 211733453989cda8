// Starts the ranks of a job on this host: all of them, this node's share of them, or the one rank that this process was made by
// another launcher. How they are watched is in local_ranks.ts.
import { randomBytes } from 'node:crypto';
import { existsSync, statSync } from 'node:fs';
import { constants, hostname } from 'node:os';
import { resolve } from 'node:path';
import { packageVersion } from '../core/version.ts';
import { type Variables, variables } from '../environment.ts';
import { countDevices } from './count_devices.ts';
import type { StopSignal } from './failure.ts';
import { countRanks, describePlan, type LaunchPlan, type NodePlan } from './launch_plan.ts';
import { LocalRanks, type RankStart } from './local_ranks.ts';
import { alone, joinNodes, type Nodes } from './nodes/index.ts';
import { freePortPair } from './ports.ts';
import { heartbeatSeconds, timeoutSeconds } from './seconds.ts';
import { hostsSecret } from './secret.ts';

export interface LaunchOptions {
  /** Ranks to start. */
  nproc: number;
  /** A `.js`, `.mjs` or `.cjs` file. */
  script: string;
  args?: readonly string[] | undefined;
  /** Added to this process's environment; `undefined` removes a variable. */
  env?: Readonly<Record<string, string | undefined>> | undefined;
  /** Default: MASTER_PORT of the environment, else a free pair of ports. */
  masterPort?: number | undefined;
  /** Flags of Node for the ranks. */
  nodeArgs?: readonly string[] | undefined;
  cwd?: string | undefined;
  /** Gets every line of output. Default: this process's own, lines of ranks other than 0 prefixed with `[rank 1] `. */
  onLine?: ((rank: number, stream: 'stdout' | 'stderr', line: string) => void) | undefined;
}

export interface LaunchResult {
  /** 0, or that of the rank that failed first: 128 + n if a signal ended it. 130 or 143 if the ranks stopped as a signal asked. */
  code: number;
  /** The rank that failed first, and why, with its host where there are several; without a rank, the launcher of that host. */
  failure?: { rank: number | undefined; host?: string; message: string } | undefined;
  /** The signal that stopped the job. */
  interrupted?: StopSignal | undefined;
}

/** What is known of a job when its ranks are about to start. */
export interface LaunchedJob {
  worldSize: number;
  /** The first rank that this process starts. */
  firstRank: number;
}

/** @internal What to start; nobody but the plan says how many. */
export type RankProgram = Omit<LaunchOptions, 'nproc' | 'masterPort'>;

function checkScript(script: string): string {
  const path = resolve(script);
  if (!existsSync(path)) throw new Error(`the script ${path} does not exist`);
  if (!statSync(path).isFile()) throw new Error(`the script ${path} is not a file`);
  return path;
}

/** The ranks of one node, with the variables that torchrun sets. */
function startsOf(nodes: Nodes, base: Variables, shared: Variables): RankStart[] {
  const counts = nodes.nodes.map(({ nproc }) => nproc);
  const total = (some: readonly number[]): number => some.reduce((a, b) => a + b, 0);
  const index = nodes.nodes.findIndex(({ node }) => node === nodes.node);
  const nproc = counts[index]!;
  const firstRank = total(counts.slice(0, index));
  return Array.from({ length: nproc }, (_, i) => ({
    rank: firstRank + i,
    inheritsOutput: firstRank + i === 0,
    env: {
      ...base,
      ...shared,
      RANK: String(firstRank + i),
      LOCAL_RANK: String(i),
      WORLD_SIZE: String(total(counts)),
      LOCAL_WORLD_SIZE: String(nproc),
      GROUP_RANK: String(nodes.node),
    },
  }));
}

const ownEntry = (node: number, nproc: number) => ({ node, host: hostname(), nproc });

/**
 * Runs a script on `nproc` ranks of this host, with the variables that torchrun sets; resolves when all have ended. Throws
 * only if the script does not exist or the options are wrong; a failing rank is a result.
 */
export async function launch(options: LaunchOptions): Promise<LaunchResult> {
  const { nproc } = options;
  if (!Number.isInteger(nproc) || nproc < 1)
    throw new RangeError(`nproc must be a whole number of 1 or more but is ${nproc}`);
  const script = checkScript(options.script);
  const base = { ...variables(), ...options.env };
  const masterPort = options.masterPort ?? (base.MASTER_PORT ? Number(base.MASTER_PORT) : await freePortPair());
  const nodes = alone(ownEntry(0, nproc));
  const starts = startsOf(
    nodes,
    { RANKZERO_SECRET: randomBytes(32).toString('hex'), ...base },
    {
      MASTER_ADDR: '127.0.0.1',
      MASTER_PORT: String(masterPort),
    },
  );
  return new LocalRanks(options, nodes).run(script, starts);
}

/**
 * Until ranks run there is nothing to wait for. The first process of a container (pid 1) would not even be ended by a signal
 * that it does not handle.
 */
function endingAtSignals(): Disposable {
  const end = (signal: NodeJS.Signals): void => process.exit(128 + constants.signals[signal]);
  process.on('SIGINT', end).on('SIGTERM', end);
  return { [Symbol.dispose]: () => void process.off('SIGINT', end).off('SIGTERM', end) };
}

interface ReadyNode {
  nodes: Nodes;
  program: RankProgram;
  starts: RankStart[];
}

/** Meets the launchers of the other nodes, and gets ready to start the ranks of this one. */
async function readyNode(
  { nnodes, nodeRank, masterAddr, masterPort }: NodePlan,
  nproc: number,
  prepare: (job: LaunchedJob) => Promise<RankProgram>,
): Promise<ReadyNode> {
  const address = masterAddr!.value;
  const port = masterPort!.value;
  const secret = hostsSecret(variables(), address);
  const own = ownEntry(nodeRank.value, nproc);
  using _ = endingAtSignals();
  const nodes = await joinNodes({
    nnodes: nnodes.value,
    own,
    address,
    port,
    secret,
    version: packageVersion(),
    timeout: timeoutSeconds(),
    heartbeatTimeout: heartbeatSeconds(),
  });
  const shared = { MASTER_ADDR: address, MASTER_PORT: String(port), RANKZERO_SECRET: secret };
  const starts = startsOf(nodes, variables(), shared);
  const worldSize = nodes.nodes.reduce((sum, entry) => sum + entry.nproc, 0);
  try {
    const program = await prepare({ worldSize, firstRank: starts[0]!.rank });
    checkScript(program.script);
    return { nodes, program, starts: starts.map((start) => ({ ...start, env: { ...start.env, ...program.env } })) };
  } catch (error) {
    nodes.fail({ rank: undefined, ...own, code: 1, message: (error as Error).message });
    await nodes.close();
    throw error;
  }
}

/**
 * @internal Carries out a plan. `prepare` is asked for the program when the size of the world is known. Errors, beside those of
 * launch: ERR_LAUNCH when the launchers of the job do not come together.
 */
export async function launchPlan(
  plan: LaunchPlan,
  prepare: (job: LaunchedJob) => Promise<RankProgram>,
): Promise<LaunchResult> {
  const text = describePlan(plan);
  if (text !== undefined) process.stderr.write(`rankzero: ${text}\n`);
  if (plan.kind === 'rank') {
    const { rank, worldSize } = plan.environment;
    const program = await prepare({ worldSize, firstRank: rank });
    const nodes = alone(ownEntry(0, 1));
    const env = { ...variables(), ...program.env, ...plan.env };
    const script = checkScript(program.script);
    return new LocalRanks({ ...program, nproc: 1 }, nodes).run(script, [{ rank, env, inheritsOutput: true }]);
  }
  const nproc = await countRanks(plan.nproc.value, countDevices);
  if (plan.nnodes.value > 1) {
    const { nodes, program, starts } = await readyNode(plan, nproc, prepare);
    try {
      return await new LocalRanks({ ...program, nproc }, nodes).run(checkScript(program.script), starts);
    } finally {
      await nodes.close();
    }
  }
  const program = await prepare({ worldSize: nproc, firstRank: 0 });
  return launch({ ...program, nproc, masterPort: plan.masterPort?.value });
}
