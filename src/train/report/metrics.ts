// metrics.jsonl: one JSON object a line for everything a run reports; report.html is drawn from it.
// A resumed run goes on in the same file: lines of steps after its checkpoint, and a torn last line, are dropped first.
import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { dirname } from 'node:path';
import type { EvalRecord, Reporter, RunInfo, RunSummary, SampleRecord, StepRecord } from '../reporter.ts';
import type { Environment } from './environment.ts';

interface Timed<Kind extends string> {
  kind: Kind;
  /** Seconds since 1970. */
  time: number;
}

/** A line of metrics.jsonl. */
export type MetricsLine =
  | (Timed<'start'> & RunInfo & { environment: Environment })
  | (Timed<'load'> & { bytes: number; seconds: number })
  | (Timed<'step'> & StepRecord)
  | (Timed<'eval'> & EvalRecord)
  | (Timed<'sample'> & SampleRecord)
  | (Timed<'note'> & { message: string })
  | (Timed<'checkpoint'> & { dir: string; step: number })
  | (Timed<'end'> & RunSummary);

/** The lines of a metrics file that are whole. */
export function readMetrics(path: string): MetricsLine[] {
  const lines: MetricsLine[] = [];
  for (const text of readFileSync(path, 'utf8').split('\n')) {
    try {
      if (text !== '') lines.push(JSON.parse(text) as MetricsLine);
    } catch {
      // A line that was being written when the process was killed.
    }
  }
  return lines;
}

/** Appends to `path`; starts the file anew unless the run resumes. */
export class MetricsWriter implements Reporter {
  readonly #path: string;
  readonly #environment: Environment;
  #fd: number | undefined;

  constructor(path: string, environment: Environment) {
    this.#path = path;
    this.#environment = environment;
  }

  onStart(info: RunInfo): void {
    mkdirSync(dirname(this.#path), { recursive: true });
    const kept = info.startStep > 0 && existsSync(this.#path) ? readMetrics(this.#path) : [];
    const text = kept
      .filter((line) => !('step' in line) || line.step <= info.startStep)
      .map((line) => `${JSON.stringify(line)}\n`)
      .join('');
    writeFileSync(`${this.#path}.tmp`, text);
    renameSync(`${this.#path}.tmp`, this.#path);
    this.#fd = openSync(this.#path, 'a');
    this.#write('start', { ...info, environment: this.#environment });
  }

  onLoad({ bytes, totalBytes, seconds }: { bytes: number; totalBytes: number; seconds: number }): void {
    if (bytes >= totalBytes) this.#write('load', { bytes, seconds });
  }

  onStep(record: StepRecord): void {
    this.#write('step', record);
  }

  onEval(record: EvalRecord): void {
    this.#write('eval', record);
  }

  onSample(record: SampleRecord): void {
    this.#write('sample', record);
  }

  onNote(message: string): void {
    this.#write('note', { message });
  }

  onCheckpoint(dir: string, step: number): void {
    this.#write('checkpoint', { dir, step });
  }

  onEnd(summary: RunSummary): void {
    this.#write('end', summary);
    if (this.#fd === undefined) return;
    fsyncSync(this.#fd);
    closeSync(this.#fd);
    this.#fd = undefined;
  }

  #write(kind: MetricsLine['kind'], fields: object): void {
    if (this.#fd === undefined) return;
    writeSync(this.#fd, `${JSON.stringify({ kind, time: Date.now() / 1000, ...fields })}\n`);
  }
}
