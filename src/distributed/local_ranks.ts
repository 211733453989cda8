// The ranks of one host, as its launcher starts and watches them. A rank that fails is told to the other nodes, and the job's
// first failure decides: it is shown, the ranks are ended, its exit code is the launcher's. Ranks never outlive the launcher.
import { type ChildProcess, spawn } from 'node:child_process';
import { constants } from 'node:os';
import type { Variables } from '../environment.ts';
import type { RankReport, StopSignal } from './failure.ts';
import type { LaunchOptions, LaunchResult } from './launcher.ts';
import { LineSplitter } from './lines.ts';
import type { JobFailure, Nodes } from './nodes/index.ts';
import { graceSeconds } from './seconds.ts';

/** One rank to start. */
export interface RankStart {
  rank: number;
  env: Variables;
  /** It writes to the launcher's own terminal; lines of the others are prefixed. */
  inheritsOutput: boolean;
}

/** Milliseconds between SIGTERM and SIGKILL after a failure. */
const killDelay = 2000;
/** How long a failure that only follows from another one waits for that other one. */
const blameDelay = 1500;
const preload = new URL('./preload.js', import.meta.url).href;
const consequences: readonly (string | undefined)[] = ['ERR_PEER', 'ERR_GROUP_CLOSED', 'ERR_GROUP'];
/** Exit codes of what a signal has stopped. */
const stopCodes: Readonly<Record<StopSignal, number>> = { SIGINT: 130, SIGTERM: 143 };

interface Rank {
  rank: number;
  child: ChildProcess;
  report: RankReport | undefined;
  isGone: boolean;
}

export class LocalRanks {
  private readonly ranks: Rank[] = [];
  private readonly options: LaunchOptions;
  private readonly nodes: Nodes;
  private readonly grace = graceSeconds() * 1000;
  /** The job's first failure. */
  private first: JobFailure | undefined;
  private follower: JobFailure | undefined;
  /** The others know how this host's ranks ended. */
  private isReported = false;
  /** The signal that stops the job. */
  private interrupted: StopSignal | undefined;
  /** This launcher got a SIGINT itself, which another launcher may have passed on before. */
  private isAsked = false;
  /** A rank ended early and well, because of this signal. */
  private stopped: StopSignal | undefined;
  private ending = false;
  private blameTimer: NodeJS.Timeout | undefined;
  private killTimer: NodeJS.Timeout | undefined;
  private readonly result: Promise<LaunchResult>;
  private finish!: (result: LaunchResult) => void;

  constructor(options: LaunchOptions, nodes: Nodes) {
    this.options = options;
    this.nodes = nodes;
    this.result = new Promise((resolve) => {
      this.finish = resolve;
    });
  }

  async run(script: string, starts: readonly RankStart[]): Promise<LaunchResult> {
    const unwatch = this.watchSignals();
    try {
      for (const start of starts) this.start(script, start);
      this.nodes.listen({
        onFailure: (failure) => this.failed(failure),
        onSignal: (signal) => this.stop(signal),
        onEnd: (stopped) =>
          this.finish({ code: stopped ? stopCodes[stopped] : 0, ...(stopped ? { interrupted: stopped } : {}) }),
      });
      return await this.result;
    } finally {
      unwatch();
      clearTimeout(this.killTimer);
      clearTimeout(this.blameTimer);
      this.signal('SIGKILL');
    }
  }

  private start(script: string, { rank, env, inheritsOutput }: RankStart): void {
    const { options } = this;
    const output = inheritsOutput && !options.onLine ? 'inherit' : 'pipe';
    const child = spawn(
      process.execPath,
      ['--import', preload, ...(options.nodeArgs ?? []), script, ...(options.args ?? [])],
      {
        env: { ...env, RANKZERO_LAUNCHER_PID: String(process.pid), RANKZERO_STATUS_FD: '3' },
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
      entry.report = JSON.parse(line) as RankReport;
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
    const { onLine } = this.options;
    if (onLine) onLine(rank, stream, line);
    else process[stream].write(rank === 0 || line.trim() === '' ? line : `[rank ${rank}] ${line}`);
  }

  private ended(entry: Rank, code: number | null, signal: NodeJS.Signals | null, why?: string): void {
    if (entry.isGone) return;
    entry.isGone = true;
    kill(entry.child, 'SIGKILL'); // what the rank started itself
    const stopped = entry.report?.stopped;
    if (code === 0 || (stopped && code === stopCodes[stopped])) this.stopped ??= stopped;
    else if (!this.ending) this.judge(entry, code, signal, why);
    this.settle();
  }

  /** Once no rank is left, the end of the job is what the nodes agree on. */
  private settle(): void {
    if (this.ranks.some((rank) => !rank.isGone)) return;
    if (this.follower) this.report(this.follower);
    if (this.first) {
      const { rank, host, code, message } = this.first;
      const where = this.nodes.nodes.length > 1 ? { host } : {};
      this.finish({ code, failure: { rank, message, ...where } });
    } else if (!this.isReported) {
      this.isReported = true;
      this.nodes.done(this.interrupted === 'SIGTERM' ? 'SIGTERM' : this.stopped);
    }
  }

  private judge(entry: Rank, code: number | null, signal: NodeJS.Signals | null, why: string | undefined): void {
    const { interrupted } = this;
    if (interrupted && code === stopCodes[interrupted]) {
      this.stopped ??= interrupted; // it stopped as it was asked to
      return;
    }
    const number = signal ? 128 + (constants.signals[signal] ?? 0) : (code ?? 1);
    const { node, nodes } = this.nodes;
    const place = { rank: entry.rank, node, host: nodes[node]?.host ?? '' };
    if (interrupted && signal !== null) {
      const stopCode = interrupted === 'SIGTERM' ? stopCodes.SIGTERM : number;
      this.report({ ...place, code: stopCode, message: `interrupted by ${signal}`, isQuiet: true });
      return;
    }
    const { report } = entry;
    const message = why ?? report?.message ?? (signal ? `killed by ${signal}` : `it exited with code ${code}`);
    const failure: JobFailure = { ...place, code: number, message, details: report?.details };
    if (consequences.includes(report?.code)) {
      // It failed because another rank did; that one is about to be seen.
      this.follower ??= failure;
      this.blameTimer ??= setTimeout(() => this.report(failure), blameDelay);
    } else {
      this.report(failure);
    }
  }

  private report(failure: JobFailure): void {
    if (this.isReported || this.first) return;
    this.isReported = true;
    clearTimeout(this.blameTimer);
    this.nodes.fail(failure);
  }

  private failed(failure: JobFailure): void {
    this.first = failure;
    clearTimeout(this.blameTimer);
    if (!failure.isQuiet) this.show(failure);
    this.end();
    this.settle();
  }

  private show(failure: JobFailure): void {
    const { node, nodes } = this.nodes;
    const { rank, host } = failure;
    const where = nodes.length > 1 ? ` on ${host}` : '';
    const who = rank === undefined ? `node ${failure.node} (${host})` : `rank ${rank}${where}`;
    // Node 0 speaks for the job; another node has the details of its own ranks.
    const details = node === 0 || node === failure.node ? detailsAfter(failure) : '';
    const text = `${who} failed: ${failure.message}${details}\n`;
    const { onLine } = this.options;
    if (onLine) for (const line of text.trimEnd().split('\n')) onLine(rank ?? 0, 'stderr', `${line}\n`);
    else process.stderr.write(text);
  }

  /** Ends the ranks that still run. */
  private end(): void {
    if (this.ending) return;
    this.ending = true;
    if (this.interrupted === 'SIGTERM') return; // they are ending
    this.signal('SIGTERM');
    this.killTimer = setTimeout(() => this.signal('SIGKILL'), killDelay);
  }

  /** Lets the ranks end by themselves. */
  private stop(signal: StopSignal): void {
    if (this.interrupted === signal || this.interrupted === 'SIGTERM') return;
    this.interrupted = signal;
    this.signal(signal);
    if (signal === 'SIGTERM' && !this.ending) this.killTimer = setTimeout(() => this.signal('SIGKILL'), this.grace);
  }

  private signal(signal: NodeJS.Signals): void {
    for (const { child, isGone } of this.ranks) if (!isGone) kill(child, signal);
  }

  private watchSignals(): () => void {
    const passOn = (signal: StopSignal): void => {
      this.stop(signal);
      this.nodes.relay(signal);
    };
    const interrupt = (): void => {
      if (this.isAsked) this.signal('SIGKILL');
      else passOn('SIGINT');
      this.isAsked = true;
    };
    // Schedulers may send it to the launcher more than once, and to the ranks too.
    const terminate = (): void => passOn('SIGTERM');
    const exit = (): void => this.signal('SIGKILL');
    process.on('SIGINT', interrupt).on('SIGTERM', terminate).on('SIGHUP', terminate).on('exit', exit);
    return () => {
      process.off('SIGINT', interrupt).off('SIGTERM', terminate).off('SIGHUP', terminate).off('exit', exit);
    };
  }
}

/** The stack and properties of an error, without the message that was shown already. */
function detailsAfter({ message, details }: JobFailure): string {
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
