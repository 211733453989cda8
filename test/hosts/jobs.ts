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
const placement: readonly (readonly number[])[] = [[0], [1, 2]];

export interface JobOptions {
  /** Seconds that the job computes, unless something happens to it. */
  seconds?: number;
  /** Of each shard. */
  elements?: number;
  env?: Record<string, string>;
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
  const watch = new Watch(placement.flat().length);
  const { envOf, mountsOf } = options;
  const ended = runOnHosts(lab, placement, steps, {
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

/** One launcher on each host. Node 0's is there first; the other comes after `others`. */
export function startLaunchers(lab: Lab, options: JobOptions = {}, others?: Promise<unknown>): LaunchedJob {
  const watch = new Watch(placement.flat().length);
  const address = `${lab.hosts[0]!.address}:${ports.launchers}`;
  const started = placement.map((ranks, node) => {
    const place = ['--nnodes', String(placement.length), '--node-rank', String(node), '--master-address', address];
    const argv = [process.execPath, cli, 'run', ...place, '--nproc', String(ranks.length), steps, ...argsOf(options)];
    const start = () =>
      lab.hosts[node]!.start(argv, {
        env: { RANKZERO_SECRET: secret, RANKZERO_QUIET: '1', OMP_NUM_THREADS: '1', ...options.env },
        onLine: (text) => {
          const match = /^(?:\[rank (\d+)\] )?(.*)$/.exec(text)!;
          watch.line(Number(match[1] ?? 0), match[2]!);
        },
      });
    return (node === 0 ? Promise.resolve() : Promise.resolve(others)).then(start);
  });
  const launchers: number[] = [];
  for (const [node, one] of started.entries()) {
    void one.then(({ child }) => {
      launchers[node] = child.pid!;
    });
  }
  const ended = Promise.all(started.map(async (one) => (await one).done));
  void ended.then((results) => watch.end(results));
  return { pids: watch.pids, running: watch.running, ended, launchers };
}

/** The first line that a launcher said of the job's end. */
export const verdictOf = ({ stderr }: HostProcess): string =>
  stderr.split('\n').find((line) => / failed: /.test(line)) ?? stderr;

/** All have ended well, with the right numbers. */
export function expectRight(results: readonly HostProcess[]): void {
  for (const result of results) {
    expect(result.code, said(result)).toBe(0);
    expect(result.stdout).toMatch(/^(\[rank \d\] )?right after \d+ steps$/m);
  }
}

/** No process and no open port is left on the hosts. */
export async function expectNothingLeft(hosts: readonly Host[]): Promise<void> {
  for (const host of hosts) {
    await waitForDeath(host.pids, 5000);
    expect(host.openPorts).toEqual([]);
  }
}
