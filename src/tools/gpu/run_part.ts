// Runs a part in child processes until every unit has a result: a unit that ends its process, or takes too long, fails, and the
// next process goes on behind it.
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { LineSplitter } from '../../distributed/lines.ts';
import {
  goOnCode,
  type PartName,
  type PartOptions,
  parts,
  type UnitResult,
  type WorkerLine,
  type WorkerRequest,
} from './part.ts';

export interface TimedResult extends UnitResult {
  seconds: number;
}

export interface PartRun {
  results: TimedResult[];
  /** Units that were not begun, since the time was over. */
  left: string[];
  /** Why the part could not run at all. */
  failure?: string | undefined;
}

const worker = fileURLToPath(new URL('./worker.js', import.meta.url));
const abandonDelay = 10_000;
const lastLines = (text: string): string => text.trim().split('\n').slice(-12).join('\n');

/** `deadline`: of performance.now(). `onResult` is called as results come. `script` is the worker. */
export async function runPart(
  part: PartName,
  options: PartOptions,
  deadline: number,
  onResult: (result: TimedResult) => void,
  script: string = worker,
): Promise<PartRun> {
  const run: PartRun = { results: [], left: [] };
  const take = (result: TimedResult): void => {
    run.results.push(result);
    onResult(result);
  };
  for (;;) {
    const done = run.results.map(({ unit }) => unit);
    const secondsLeft = (deadline - performance.now()) / 1000;
    const child = await runOnce(script, { ...options, secondsLeft, part, skip: done }, deadline, take);
    run.left = child.units.filter((name) => !run.results.some(({ unit }) => unit === name));
    if (child.outcome === 'ended') return run;
    if (child.outcome === 'late') {
      // The unit that was under way is not blamed for the end of the time.
      return run;
    }
    if (child.begun === undefined) {
      if (child.outcome === 'lost' && run.left.length > 0 && run.results.length > done.length) continue;
      run.failure = `${child.how}${child.said ? `:\n${child.said}` : ''}`;
      return run;
    }
    const failures = [`its process ${child.how}${child.said ? `:\n${child.said}` : ''}`];
    take({ unit: child.begun, failures, seconds: child.seconds });
    run.left = run.left.filter((name) => name !== child.begun);
    if (run.left.length === 0) return run;
  }
}

interface ChildRun {
  outcome: 'ended' | 'lost' | 'died' | 'late';
  units: string[];
  /** The unit that was under way. */
  begun: string | undefined;
  seconds: number;
  how: string;
  said: string;
}

function runOnce(
  script: string,
  request: WorkerRequest,
  deadline: number,
  take: (result: TimedResult) => void,
): Promise<ChildRun> {
  const patience = parts[request.part].patience[request.size];
  const child = spawn(process.execPath, [script, JSON.stringify(request)], { stdio: ['ignore', 'pipe', 'pipe'] });
  const stop = (): void => void child.kill('SIGKILL');
  process.once('exit', stop);
  let units: string[] = [];
  let begun: string | undefined;
  let start = performance.now();
  let said = '';
  let killed: 'slow' | 'late' | undefined;
  let abandon: (() => void) | undefined;
  const kill = (why: 'slow' | 'late'): void => {
    killed ??= why;
    stop();
    abandon?.();
  };
  const late = setTimeout(() => kill('late'), Math.max(0, deadline - performance.now()));
  let slow = setTimeout(() => kill('slow'), patience * 1000);
  const lines = new LineSplitter((text) => {
    clearTimeout(slow);
    slow = setTimeout(() => kill('slow'), patience * 1000);
    const line = parseLine(text);
    if (line === undefined) said += `${text}\n`;
    else if ('units' in line) units = line.units;
    else if ('begin' in line) {
      begun = line.begin;
      start = performance.now();
    } else {
      begun = undefined;
      take({ ...line.result, seconds: line.seconds });
    }
  });
  child.stdout.on('data', (chunk: Buffer) => lines.write(chunk));
  child.stderr.setEncoding('utf8').on('data', (chunk: string) => {
    said = (said + chunk).slice(-20_000);
  });
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    const end = (code: number | null, signal: string | null): void => {
      clearTimeout(slow);
      clearTimeout(late);
      process.off('exit', stop);
      const outcome = killed === 'late' ? 'late' : code === 0 ? 'ended' : code === goOnCode ? 'lost' : 'died';
      const how =
        killed === 'slow'
          ? `was killed after ${patience} s without a result`
          : signal
            ? `died of ${signal}`
            : `ended with exit code ${code}`;
      resolve({ outcome, units, begun, seconds: (performance.now() - start) / 1000, how, said: lastLines(said) });
    };
    child.once('close', end);
    // A process in the hands of a driver that hangs does not die.
    abandon = () => setTimeout(end, abandonDelay, null, 'SIGKILL').unref();
  });
}

function parseLine(text: string): WorkerLine | undefined {
  try {
    const value = JSON.parse(text) as WorkerLine;
    return typeof value === 'object' && value !== null ? value : undefined;
  } catch {
    return undefined;
  }
}
