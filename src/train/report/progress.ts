// What the terminal shows of a run: a loading bar, one live training line, evaluations, and a summary.
// Where stdout is not a terminal: plain lines, a few dozen for the whole run.
import { join, relative } from 'node:path';
import {
  formatBytes,
  formatChange,
  formatCount,
  formatParameters,
  formatRate,
  formatSeconds,
  formatWhole,
} from '../../core/format.ts';
import { settings } from '../../environment.ts';
import type {
  EvalRecord,
  LoadProgress,
  ProfileRecord,
  Reporter,
  RunInfo,
  RunSummary,
  SampleRecord,
  StepRecord,
} from '../reporter.ts';

/** The part of a stream that is used. */
export interface ProgressStream {
  write(text: string): unknown;
  isTTY?: boolean | undefined;
  columns?: number | undefined;
}

export interface ProgressOptions {
  /** Default: `process.stdout`. */
  stream?: ProgressStream | undefined;
  /** For the table of a profile. Default: `process.stderr`. */
  errorStream?: ProgressStream | undefined;
  /** Clock in milliseconds. */
  now?: (() => number) | undefined;
  /** Whether the summary names report.html. */
  report?: boolean | undefined;
}

const PLAIN_INTERVAL_MS = 15_000;
const LIVE_INTERVAL_MS = 80;

function bar(fraction: number, width: number): string {
  const eighths = Math.round(Math.min(1, Math.max(0, fraction)) * width * 8);
  const full = Math.floor(eighths / 8);
  const part = ' ▏▎▍▌▋▊▉'[eighths % 8]!;
  return ('█'.repeat(full) + (full < width ? part : '')).padEnd(width, ' ');
}

const shortPath = (path: string): string => {
  const near = relative(process.cwd(), path);
  return near === '' ? '.' : near.startsWith('..') ? path : near;
};

/** Reports a run on the terminal. */
export class Progress implements Reporter {
  readonly #out: ProgressStream;
  readonly #err: ProgressStream;
  readonly #now: () => number;
  readonly #live: boolean;
  readonly #namesReport: boolean;
  #lastShown = -Infinity;
  #lastShownStep = 0;
  #liveLine = false;
  #startStep = 0;
  #first = new Map<string, SampleRecord>();
  #last = new Map<string, SampleRecord>();

  constructor(options: ProgressOptions = {}) {
    this.#out = options.stream ?? process.stdout;
    this.#err = options.errorStream ?? process.stderr;
    this.#now = options.now ?? performance.now.bind(performance);
    this.#live = this.#out.isTTY === true;
    this.#namesReport = options.report ?? false;
  }

  onStart(info: RunInfo): void {
    const o = info.options;
    const ranks = info.worldSize === 1 ? '1 rank' : `${info.worldSize} ranks (${info.backend}, ${o.strategy})`;
    const sizes = formatParameters(info.parameters, info.trainableParameters);
    this.#line(`${this.#bold(info.model)}  ${info.modelType}, ${sizes}, ${o.precision}, ${ranks}`);
    this.#line(`${info.device}, ${info.deviceReason}`);
    const evaluation = info.evalExamples > 0 ? `, ${formatWhole(info.evalExamples)} to evaluate` : '';
    this.#line(
      `${formatWhole(info.trainExamples)} examples${evaluation}, ${formatWhole(info.totalSteps)} steps, seed ${o.seed}`,
    );
    this.#lastShown = this.#now();
    this.#startStep = info.startStep;
    this.#lastShownStep = info.startStep;
    if (info.startStep > 0) this.#line(`resuming after step ${info.startStep}`);
  }

  onLoad({ bytes, totalBytes, seconds }: LoadProgress): void {
    const done = bytes >= totalBytes;
    if (!done && !this.#due(this.#live ? LIVE_INTERVAL_MS : 2000)) return;
    const fraction = totalBytes > 0 ? bytes / totalBytes : 1;
    const rate = seconds > 0 ? `${(bytes / seconds / 1e9).toFixed(2)} GB/s` : '';
    const amount = `${formatBytes(bytes)} of ${formatBytes(totalBytes)}  ${rate}`;
    if (done) this.#line(`loaded   ${formatBytes(totalBytes)} in ${formatSeconds(seconds)}  ${rate}`);
    else if (this.#live) this.#replace(`loading  ${bar(fraction, 24)} ${percent(fraction)}  ${amount}`);
    else this.#line(`loading  ${percent(fraction)}  ${amount}`);
  }

  onStep(record: StepRecord): void {
    const last = record.step === record.totalSteps;
    const first = this.#lastShownStep === this.#startStep;
    const count = record.step - this.#lastShownStep;
    const plain = first || count >= record.totalSteps / 20 || this.#due(PLAIN_INTERVAL_MS);
    if (!last && !(this.#live ? this.#due(LIVE_INTERVAL_MS) : plain)) return;
    this.#lastShown = this.#now();
    this.#lastShownStep = record.step;
    const width = String(record.totalSteps).length;
    const text = [
      `step ${String(record.step).padStart(width)}/${record.totalSteps}`,
      `epoch ${record.epoch.toFixed(2)}`,
      `loss ${record.loss.toFixed(4)}`,
      `lr ${formatRate(record.learningRate)}`,
      `grad ${record.gradNorm.toFixed(2)}`,
      `${formatCount(Math.round(record.tokensPerSecond))} tok/s`,
      last ? '' : `ETA ${formatSeconds(record.etaSeconds)}`,
    ].filter(Boolean);
    if (!this.#live || last) this.#line(text.join('  '));
    else this.#replace(`${bar(record.step / record.totalSteps, 16)} ${text.join('  ')}`);
  }

  onEval({ step, loss, perplexity, seconds }: EvalRecord): void {
    const numbers = `loss ${loss.toFixed(4)}  perplexity ${formatCount(perplexity)}`;
    this.#line(
      `eval     ${step === 0 ? 'before training' : `after step ${step}`}  ${numbers}  ${formatSeconds(seconds)}`,
    );
  }

  onSample(record: SampleRecord): void {
    if (!this.#first.has(record.prompt)) this.#first.set(record.prompt, record);
    this.#last.set(record.prompt, record);
  }

  onNote(message: string): void {
    this.#line(`note     ${message}`);
  }

  onProfile({ first, last, files, profile }: ProfileRecord): void {
    const steps = first === last ? `step ${first}` : `steps ${first} to ${last}`;
    this.#line(`profile  ${steps}: ${shortPath(files.trace)}, for https://ui.perfetto.dev; ${shortPath(files.table)}`);
    this.#err.write(`\n${profile.table({ rowLimit: 12 })}\n`);
  }

  onCheckpoint(dir: string): void {
    this.#line(`saved    ${shortPath(dir)}`);
  }

  onEnd(summary: RunSummary): void {
    const { evalBefore: before, evalAfter: after } = summary;
    const how = summary.interrupted ? `Interrupted after step ${summary.steps} of ${summary.totalSteps}` : 'Done';
    const rate = formatCount(Math.round(summary.tokens / summary.seconds));
    this.#line('');
    this.#line(
      `${this.#bold(how)} in ${formatSeconds(summary.seconds)}: ${summary.steps} steps, ` +
        `${formatWhole(summary.tokens)} tokens, ${rate} tok/s overall`,
    );
    if (before && after) {
      this.#line(
        `  evaluation loss  ${before.loss.toFixed(3)} before, ${this.#bold(after.loss.toFixed(3))} after ` +
          `(${formatChange(before.loss, after.loss)})`,
      );
    }
    if (summary.peakDeviceMemoryBytes !== undefined) {
      const reserved = formatBytes(summary.peakDeviceReservedBytes ?? 0);
      this.#line(
        `  GPU memory  at most ${formatBytes(summary.peakDeviceMemoryBytes)} in use, ${reserved} reserved (rank 0)`,
      );
    }
    for (const [prompt, first] of this.#first) {
      const last = this.#last.get(prompt)!;
      this.#line(`\n  ${this.#bold(prompt)}`);
      if (last.step !== first.step) this.#line(`    before  ${oneLine(first.answer)}`);
      this.#line(`    ${last.step === 0 ? 'before' : 'after '}  ${oneLine(last.answer)}`);
    }
    if (this.#first.size > 0) this.#line('');
    this.#line(`  ${summary.interrupted ? 'folder' : 'model '}  ${shortPath(summary.output)}`);
    if (this.#namesReport) this.#line(`  report  ${shortPath(join(summary.output, 'report.html'))}`);
    if (summary.interrupted) this.#line('  go on with the same command and --resume');
  }

  #due(interval: number): boolean {
    const now = this.#now();
    if (now - this.#lastShown < interval) return false;
    this.#lastShown = now;
    return true;
  }

  #bold(text: string): string {
    return this.#live && settings.color ? `\x1b[1m${text}\x1b[22m` : text;
  }

  #line(text: string): void {
    this.#out.write(`${this.#liveLine ? '\r\x1b[K' : ''}${text}\n`);
    this.#liveLine = false;
  }

  #replace(text: string): void {
    // A line that wraps cannot be replaced.
    this.#out.write(`\r\x1b[K${text.slice(0, (this.#out.columns ?? 80) - 1)}`);
    this.#liveLine = true;
  }
}

const percent = (fraction: number): string => `${Math.floor(fraction * 100)}%`.padStart(4);
const oneLine = (text: string): string => text.trim().replace(/\s+/g, ' ');
