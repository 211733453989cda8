// Starts the ranks of a job on this host and watches them. The first rank that fails decides: its error is shown, the
// others are ended, its exit code is the job's. Ranks never outlive the launcher.
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, statSync } from 'node:fs';
import { constants } from 'node:os';
import { resolve } from 'node:path';
import { variables } from '../environment.ts';
import type { FailureReport } from './failure.ts';
import { LineSplitter } from './lines.ts';
import { freePortPair } from './ports.ts';

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
  /** 0, or that of the rank that failed first: 128 + n if a signal ended it. */
  code: number;
  /** The rank that failed first, and why. */
  failure?: { rank: number; message: string } | undefined;
}

/** Time between SIGTERM and SIGKILL. */
const killDelay = 2000;
/** How long a failure that only follows from another one waits for that other one. */
const blameDelay = 1500;
const preload = new URL('./preload.js', import.meta.url).href;
const consequences: readonly (string | undefined)[] = ['ERR_PEER', 'ERR_GROUP_CLOSED', 'ERR_GROUP'];

interface Rank {
  rank: number;
  child: ChildProcess;
  report: FailureReport | undefined;
  isGone: boolean;
}

interface Failure {
  rank: number;
  code: number;
  message: string;
  details: string | undefined;
}

function checkOptions({ nproc, script }: LaunchOptions): string {
  if (!Number.isInteger(nproc) || nproc < 1)
    throw new RangeError(`nproc must be a whole number of 1 or more but is ${nproc}`);
  const path = resolve(script);
  if (!existsSync(path)) throw new Error(`the script ${path} does not exist`);
  if (!statSync(path).isFile()) throw new Error(`the script ${path} is not a file`);
  return path;
}

class Job {
  private readonly ranks: Rank[] = [];
  private first: Failure | undefined;
  private follower: Failure | undefined;
  private interrupted = false;
  private ending = false;
  private blameTimer: NodeJS.Timeout | undefined;
  private killTimer: NodeJS.Timeout | undefined;
  private readonly onLine: NonNullable<LaunchOptions['onLine']> | undefined;
  private readonly done: Promise<LaunchResult>;
  private finish!: (result: LaunchResult) => void;

  constructor(options: LaunchOptions) {
    this.onLine = options.onLine;
    this.done = new Promise((resolve) => {
      this.finish = resolve;
    });
  }

  async run(options: LaunchOptions, script: string): Promise<LaunchResult> {
    const base = { ...variables(), ...options.env };
    const masterPort = options.masterPort ?? (base.MASTER_PORT ? Number(base.MASTER_PORT) : await freePortPair());
    const secret = randomBytes(32).toString('hex');
    const stop = this.watchSignals();
    try {
      for (let rank = 0; rank < options.nproc; rank++) {
        this.start(rank, options, script, {
          RANKZERO_SECRET: secret,
          ...base,
          RANK: String(rank),
          LOCAL_RANK: String(rank),
          WORLD_SIZE: String(options.nproc),
          LOCAL_WORLD_SIZE: String(options.nproc),
          MASTER_ADDR: '127.0.0.1',
          MASTER_PORT: String(masterPort),
          RANKZERO_LAUNCHER_PID: String(process.pid),
          RANKZERO_STATUS_FD: '3',
        });
      }
      return await this.done;
    } finally {
      stop();
      clearTimeout(this.killTimer);
      clearTimeout(this.blameTimer);
      this.signal('SIGKILL');
    }
  }

  private start(rank: number, options: LaunchOptions, script: string, env: NodeJS.ProcessEnv): void {
    // Rank 0 writes to the launcher's own terminal; lines of the others are prefixed.
    const output = rank === 0 && !this.onLine ? 'inherit' : 'pipe';
    const child = spawn(
      process.execPath,
      ['--import', preload, ...(options.nodeArgs ?? []), script, ...(options.args ?? [])],
      {
        env,
        cwd: options.cwd,
        detached: true, // a session of its own: a Ctrl-C at the terminal reaches the launcher alone
        stdio: ['ignore', output, output, 'pipe'],
      },
    );
    const entry: Rank = { rank, child, report: undefined, isGone: false };
    this.ranks.push(entry);
    for (const stream of ['stdout', 'stderr'] as const) {
      const lines = new LineSplitter((line) => this.line(rank, stream, line));
      child[stream]?.on('data', (chunk: Buffer) => lines.write(chunk)).on('end', () => lines.end());
    }
    const status = new LineSplitter((line) => {
      entry.report = JSON.parse(line) as FailureReport;
    });
    (child.stdio[3] as NodeJS.ReadableStream).on('data', (chunk: Buffer) => status.write(chunk));
    child.once('error', (error) => this.ended(entry, 1, null, error.message));
    // `close` comes when all output is read; a process that a rank left behind may hold it open.
    child.once('exit', (code, signal) => {
      const timer = setTimeout(() => this.ended(entry, code, signal), 500);
      child.once('close', () => {
        clearTimeout(timer);
        this.ended(entry, code, signal);
      });
    });
  }

  private line(rank: number, stream: 'stdout' | 'stderr', line: string): void {
    if (this.onLine) this.onLine(rank, stream, line);
    else process[stream].write(rank === 0 || line.trim() === '' ? line : `[rank ${rank}] ${line}`);
  }

  private ended(entry: Rank, code: number | null, signal: NodeJS.Signals | null, why?: string): void {
    if (entry.isGone) return;
    entry.isGone = true;
    kill(entry.child, 'SIGKILL'); // what the rank started itself
    if (code !== 0 && !this.ending) this.judge(entry, code, signal, why);
    if (this.ranks.some((rank) => !rank.isGone)) return;
    if (this.follower && !this.first) this.blame(this.follower);
    const { first } = this;
    const failed = first && { rank: first.rank, message: first.message };
    this.finish({ code: first?.code ?? (this.interrupted && code !== 0 ? 130 : 0), failure: failed });
  }

  private judge(entry: Rank, code: number | null, signal: NodeJS.Signals | null, why: string | undefined): void {
    if (this.interrupted && code === 130) return; // it stopped as it was asked to
    const number = signal ? 128 + (constants.signals[signal] ?? 0) : (code ?? 1);
    if (this.interrupted && signal !== null) {
      this.first ??= { rank: entry.rank, code: number, message: `interrupted by ${signal}`, details: undefined };
      this.end();
      return;
    }
    const { report } = entry;
    const message = why ?? report?.message ?? (signal ? `killed by ${signal}` : `it exited with code ${code}`);
    const failure: Failure = { rank: entry.rank, code: number, message, details: report?.details };
    if (consequences.includes(report?.code)) {
      // It failed because another rank did; that one is about to be seen.
      this.follower ??= failure;
      this.blameTimer ??= setTimeout(() => this.blame(failure), blameDelay);
    } else {
      this.blame(failure);
    }
  }

  private blame(failure: Failure): void {
    if (this.first) return;
    this.first = failure;
    clearTimeout(this.blameTimer);
    const text = `rank ${failure.rank} failed: ${failure.message}${detailsAfter(failure)}\n`;
    if (this.onLine) for (const line of text.trimEnd().split('\n')) this.onLine(failure.rank, 'stderr', `${line}\n`);
    else process.stderr.write(text);
    this.end();
  }

  /** Ends the ranks that still run. */
  private end(): void {
    if (this.ending) return;
    this.ending = true;
    this.signal('SIGTERM');
    this.killTimer = setTimeout(() => this.signal('SIGKILL'), killDelay);
  }

  private signal(signal: NodeJS.Signals): void {
    for (const { child, isGone } of this.ranks) if (!isGone) kill(child, signal);
  }

  private watchSignals(): () => void {
    const interrupt = (): void => {
      if (this.interrupted) {
        this.signal('SIGKILL');
      } else {
        this.interrupted = true;
        this.signal('SIGINT');
      }
    };
    const terminate = (): void => {
      if (this.ending) this.signal('SIGKILL');
      this.interrupted = true;
      this.first ??= { rank: 0, code: 143, message: 'the launcher was ended by SIGTERM', details: undefined };
      this.end();
    };
    const exit = (): void => this.signal('SIGKILL');
    process.on('SIGINT', interrupt).on('SIGTERM', terminate).on('SIGHUP', terminate).on('exit', exit);
    return () => {
      process.off('SIGINT', interrupt).off('SIGTERM', terminate).off('SIGHUP', terminate).off('exit', exit);
    };
  }
}

/** The stack and properties of an error, without the message that was shown already. */
function detailsAfter({ message, details }: Failure): string {
  if (!details) return '';
  const at = details.indexOf(message);
  const isHeading = at >= 0 && /^[\w$ ]*(\[[^\]]*\])?: $/.test(details.slice(0, at));
  return isHeading ? details.slice(at + message.length) : `\n${details}`;
}

/** The rank's whole process group: it leads one. */
function kill(child: ChildProcess, signal: NodeJS.Signals): void {
  if (child.pid === undefined) return;
  try {
    process.kill(-child.pid, signal);
  } catch {
    // It is gone already.
  }
}

/**
 * Runs a script on `nproc` ranks of this host, with the variables that torchrun sets; resolves when all have ended. Throws
 * only if the script does not exist or the options are wrong; a failing rank is a result.
 */
export function launch(options: LaunchOptions): Promise<LaunchResult> {
  return new Job(options).run(options, checkOptions(options));
}
