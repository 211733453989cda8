// The same job twice on the hosts of a lab, to do something to it: as ranks that something else has started, and by our launchers.
import { join } from 'node:path';
import { expect } from 'vitest';
import { waitForDeath } from '../multi/helpers.ts';
import type { Host, HostProcess, Lab } from './lab.ts';
import { hostsFixture, type RanksOptions, runOnHosts, secret } from './ranks.ts';

const cli = join(import.meta.dirname, '../../dist/cli/main.js');
const steps = hostsFixture('steps.mjs');
const ports = { ranks: 29500, launchers: 29600 };

/** Ranks of h0, h1, …: one and two. */
export const placement: readonly (readonly number[])[] = [[0], [1, 2]];

export interface JobOptions {
  /** Seconds that the job computes, unless something happens to it. */
  seconds?: number;
  /** Of each shard. */
  elements?: number;
  env?: Record<string, string>;
  placement?: readonly (readonly number[])[];
}

export interface RanksJob {
  /** By rank. */
  pids: number[];
  /** Every rank has done a step. */
  running: Promise<void>;
  /** By rank; a `HostProcess` each. */
  ended: Promise<HostProcess[]>;
}

export interface LaunchedJob extends Omit<RanksJob, 'ended'> {
  /** Of each host's launcher. */
  launchers: number[];
  ended: Promise<HostProcess[]>;
}

/** What ranks say of themselves; resolves `running` when all do. */
class Watch {
  readonly pids: number[] = [];
  readonly running: Promise<void>;
  private readonly steady = new Set<number>();
  private readonly size: number;
  private resolve!: () => void;
  private reject!: (error: Error) => void;

  constructor(size: number) {
    this.size = size;
    this.running = new Promise((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
    this.running.catch(() => {});
  }

  line(rank: number, line: string): void {
    const pid = /^pid (\d+)/.exec(line)?.[1];
    if (pid) this.pids[rank] = Number(pid);
    if (line.startsWith('running')) this.steady.add(rank);
    if (this.steady.size === this.size) this.resolve();
  }

  /** For a job that ends before it runs. */
  end(results: readonly HostProcess[]): void {
    this.reject(new Error(results.map(said).join('\n')));
  }
}

/** Everything that a process said, and how it ended. */
export const said = ({ code, signal, stdout, stderr }: HostProcess): string => `${signal ?? code}: ${stderr}${stdout}`;

/** The error that a rank caught. */
export const caught = (result: HostProcess): string =>
  /^caught (.*)$/m.exec(result.stdout)?.[1] ?? `nothing was caught: ${said(result)}`;

const argsOf = ({ seconds = 60, elements = 50_000 }: JobOptions): string[] => [String(seconds), String(elements)];

/** Ranks that each catch their error and say it. */
export function startRanks(lab: Lab, options: JobOptions & Pick<RanksOptions, 'envOf' | 'mountsOf'> = {}): RanksJob {
  const where = options.placement ?? placement;
  const watch = new Watch(where.flat().length);
  const { envOf, mountsOf } = options;
  const ended = runOnHosts(lab, where, steps, {
    args: argsOf(options),
    env: { CATCH: '1', ...options.env },
    port: ports.ranks,
    onLine: (rank, line) => watch.line(rank, line),
    ...(envOf ? { envOf } : {}),
    ...(mountsOf ? { mountsOf } : {}),
  });
  void ended.then((results) => watch.end(results));
  return { pids: watch.pids, running: watch.running, ended };
}

/** One launcher on each host. */
export function startLaunchers(lab: Lab, options: JobOptions = {}): LaunchedJob {
  const where = options.placement ?? placement;
  const watch = new Watch(where.flat().length);
  const address = `${lab.hosts[0]!.address}:${ports.launchers}`;
  const started = where.map((ranks, node) => {
    const place = ['--nnodes', String(where.length), '--node-rank', String(node), '--master-address', address];
    const argv = [process.execPath, cli, 'run', ...place, '--nproc', String(ranks.length), steps, ...argsOf(options)];
    return lab.hosts[node]!.start(argv, {
      env: { RANKZERO_SECRET: secret, RANKZERO_QUIET: '1', OMP_NUM_THREADS: '1', ...options.env },
      onLine: (text) => {
        const match = /^(?:\[rank (\d+)\] )?(.*)$/.exec(text)!;
        watch.line(Number(match[1] ?? 0), match[2]!);
      },
    });
  });
  const ended = Promise.all(started.map(({ done }) => done));
  void ended.then((results) => watch.end(results));
  return { pids: watch.pids, running: watch.running, ended, launchers: started.map(({ child }) => child.pid!) };
}

/** The first line that a launcher said of the job's end. */
export const verdictOf = ({ stderr }: HostProcess): string =>
  stderr.split('\n').find((line) => / failed: /.test(line)) ?? stderr;

/** No process and no open port is left on the hosts. */
export async function expectNothingLeft(hosts: readonly Host[]): Promise<void> {
  for (const host of hosts) {
    await waitForDeath(host.pids, 5000);
    expect(host.openPorts).toEqual([]);
  }
}
