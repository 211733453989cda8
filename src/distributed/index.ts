// `dist`: this process as a rank of a job, in the manner of torch.distributed.
import { hostname } from 'node:os';
import { processState } from '../core/context.ts';
import { packageVersion } from '../core/version.ts';
import { settings } from '../environment.ts';
import { type Handle, native } from '../native.ts';
import { computeDevice } from '../tensor/streams.ts';
import { type RankEnvironment, rankEnvironment } from './environment.ts';
import { failureReason, watchForFailure } from './failure.ts';
import { isOwnAddress } from './own_address.ts';
import { ProcessGroup } from './process_group.ts';
import { heartbeatSeconds, timeoutSeconds } from './seconds.ts';
import { jobSecret } from './secret.ts';

export interface InitProcessGroupOptions {
  /** Seconds without any progress of any rank after which a wait fails. Default: RANKZERO_TIMEOUT, else 1800. */
  timeout?: number | undefined;
  /** Rank 0 does not say which backend was chosen. Default: whether RANKZERO_QUIET is set. */
  quiet?: boolean | undefined;
}

export interface Dist {
  /**
   * Joins the job that the environment names (torchrun's variables, Slurm's, Open MPI's or PMI's; none: a world of one). Resolves when
   * all ranks have joined; calling it again is harmless. Errors: ERR_ENVIRONMENT, ERR_STORE_*, ERR_BACKEND, ERR_TIMEOUT.
   */
  initProcessGroup(options?: InitProcessGroupOptions): Promise<void>;
  isInitialized(): boolean;
  getRank(): number;
  getWorldSize(): number;
  /** Rank among the ranks of this host. */
  getLocalRank(): number;
  /** Ranks of this host. */
  getLocalWorldSize(): number;
  /**
   * What carries tensors between all ranks, on the device that this process computes on: `nccl` on `cuda`; on `cpu` `shm`;
   * `local` in a world of one. Mirrors `torch.distributed.get_backend()`.
   */
  getBackend(): string;
  /** All ranks. */
  readonly group: ProcessGroup;
  /** Blocks until all ranks are here. */
  barrier(): void;
  /**
   * A group of some ranks of the world; `undefined` on the others. Blocks until those ranks have made the same call. Each call makes
   * another group, as `torch.distributed.new_group` does, and the caller closes it; the mesh gives one group for a set of ranks.
   */
  newGroup(ranks: readonly number[]): ProcessGroup | undefined;
  /** Says in heartbeats, and so in the errors of other ranks, what this rank is at: `load`, `save` … */
  setPhase(name: string): void;
  /** Counts bytes as progress, for phases that move data outside collectives. */
  addProgress(bytes: number): void;
  /** Waits for what is enqueued and leaves the job. Rank 0 leaves last. */
  destroyProcessGroup(): void;
}

interface Joined {
  environment: RankEnvironment;
  group: ProcessGroup;
}

interface Membership {
  joined: Joined | undefined;
  joining: Promise<void> | undefined;
  leavesAtExit: boolean;
}

const membership: Membership = processState<Membership>('dist', 'the job that this process has joined', {
  joined: undefined,
  joining: undefined,
  leavesAtExit: false,
});

/** An orderly exit lets the peers finish what they share with this rank; a failure stops them at once. */
function leaveAtExit(): void {
  if (membership.leavesAtExit) return;
  membership.leavesAtExit = true;
  process.on('exit', (code) => {
    if (code === 0) native.commLeave();
    else native.commFail(failureReason() ?? `it exited with code ${code}`);
  });
}

/** Rank 0 serves the store, unless the master address is another host's: torchrun's may be. */
async function mayServe({ rank, localRank, isOneHost, masterAddr }: RankEnvironment): Promise<boolean> {
  return rank === 0 || (!isOneHost && localRank === 0 && (await isOwnAddress(masterAddr)));
}

async function join(options: InitProcessGroupOptions): Promise<void> {
  const environment = rankEnvironment();
  if (environment.worldSize === 1) {
    membership.joined = { environment, group: new ProcessGroup(native.commLocal()) };
    return;
  }
  const timeout = timeoutSeconds(options.timeout);
  const secret = jobSecret(environment);
  watchForFailure();
  leaveAtExit();
  const serves = await mayServe(environment);
  let handle: Handle;
  try {
    handle = await native.commInit({
      rank: environment.rank,
      size: environment.worldSize,
      host: environment.isOneHost ? '127.0.0.1' : environment.masterAddr,
      port: environment.storePort,
      secret: secret.secret,
      secretFile: secret.secretFile,
      loopback: environment.isOneHost,
      serves,
      address: settings.address ?? '',
      version: packageVersion(),
      timeout,
      hostName: environment.isOneHost ? '' : hostname(),
      heartbeatTimeout: heartbeatSeconds(),
    });
  } finally {
    secret.forget();
  }
  const group = new ProcessGroup(handle);
  membership.joined = { environment, group };
  const quiet = options.quiet ?? settings.quiet;
  if (environment.rank === 0 && !quiet) {
    process.stderr.write(
      `rankzero: ${group.size} ranks of ${group.hosts === 1 ? 'one host' : `${group.hosts} hosts`}, connected by ${group.backend}\n`,
    );
  }
}

function current(): Joined {
  if (!membership.joined) throw new Error('no process group: call await dist.initProcessGroup() first');
  return membership.joined;
}

/**
 * @internal This process as one rank of a world that is not there, of hosts with `localWorldSize` ranks: the beginning of a dry run
 * (src/tools/plan).
 */
export function joinDryWorld(rank: number, worldSize: number, localWorldSize: number = worldSize): void {
  const group = new ProcessGroup(native.dryRun(rank, worldSize, localWorldSize));
  const place = { rank, worldSize, localRank: rank % localWorldSize, localWorldSize };
  const address = { masterAddr: '127.0.0.1', masterPort: 0, storePort: 0, isOneHost: localWorldSize === worldSize };
  membership.joined = { environment: { source: 'single', ...place, ...address }, group };
  membership.joining = Promise.resolve();
}

export const dist: Dist = {
  initProcessGroup(options = {}) {
    membership.joining ??= join(options).catch((error) => {
      membership.joining = undefined;
      throw error;
    });
    return membership.joining;
  },
  isInitialized: () => membership.joined !== undefined,
  getRank: () => current().environment.rank,
  getWorldSize: () => current().environment.worldSize,
  getLocalRank: () => current().environment.localRank,
  getLocalWorldSize: () => current().environment.localWorldSize,
  getBackend: () => current().group.backendOf(computeDevice()),
  get group() {
    return current().group;
  },
  barrier: () => current().group.barrier(),
  newGroup: (ranks) => current().group.split(ranks),
  setPhase: (name) => native.commPhase(name),
  addProgress: (bytes) => native.commAddBytes(bytes),
  destroyProcessGroup() {
    if (!membership.joined) return;
    native.commLeave();
    membership.joined.group.close();
    membership.joined = undefined;
    membership.joining = undefined;
  },
};

export { EnvironmentError, type RankEnvironment, rankEnvironment } from './environment.ts';
export { type LaunchOptions, type LaunchResult, launch } from './launcher.ts';
export { ProcessGroup, type ReduceOp } from './process_group.ts';
