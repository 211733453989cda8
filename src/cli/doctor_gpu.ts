// `rankzero doctor --gpu`: everything that can be proven and measured on this machine's GPU, part by part, each in processes of
// its own. What is known is written as it comes, so that a command that is cut off has said what it found.
import { randomInt } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describeMachine } from '../core/machine.ts';
import { packageVersion } from '../core/version.ts';
import { type NativeAccelerator, native } from '../native.ts';
import { deviceName, peakOf } from '../tools/gpu/device.ts';
import type { Size } from '../tools/gpu/draw.ts';
import { copyName } from '../tools/gpu/measure/bandwidth.ts';
import { isPartName, type Measure, type PartName, type PartOptions, partNames, parts } from '../tools/gpu/part.ts';
import { type PartRun, runPart, type TimedResult } from '../tools/gpu/run_part.ts';
import { acceleratorRows } from './accelerator.ts';

/** The options of the command line that belong to --gpu. */
export interface GpuOptions {
  /** Names of parts, between commas. */
  only?: string | undefined;
  /** Only units whose name contains one of these texts, between commas. */
  units?: string | undefined;
  size?: string | undefined;
  seed?: string | undefined;
  timeLimit?: string | undefined;
  peak?: string | undefined;
  out?: string | undefined;
  json?: boolean | undefined;
}

interface GpuDiagnosis {
  rankzero: string;
  node: string;
  date: string;
  machine: ReturnType<typeof describeMachine>;
  accelerator: NativeAccelerator;
  seed: number;
  size: Size;
  peak: number | undefined;
  seconds: number;
  parts: Partial<Record<PartName, PartRun>>;
  ok: boolean;
}

function numberOf(flag: string, text: string | undefined, fallback: number): number {
  if (text === undefined) return fallback;
  const value = Number(text);
  if (text === '' || !(value > 0)) throw new Error(`--${flag} needs a number above 0 but got "${text}"`);
  return value;
}

function partsOf(only: string | undefined): PartName[] {
  if (only === undefined) return [...partNames];
  const chosen = only.split(',').flatMap((name) => {
    if (name === 'checks') return partNames.filter((part) => parts[part].kind === 'check');
    if (name === 'measurements') return partNames.filter((part) => parts[part].kind === 'measurement');
    if (!isPartName(name))
      throw new Error(
        `--only: there is no part ${name}; the parts are ${partNames.join(', ')}, and checks, measurements`,
      );
    return [name];
  });
  return partNames.filter((part) => chosen.includes(part));
}

/** Prints, and keeps what was printed and found in files. */
class Log {
  readonly #out: string | undefined;
  readonly #stream: NodeJS.WriteStream;
  #text = '';

  constructor(out: string | undefined, stream: NodeJS.WriteStream) {
    this.#out = out;
    this.#stream = stream;
    if (out !== undefined) mkdirSync(out, { recursive: true });
  }

  line(text = ''): void {
    this.#text += `${text}\n`;
    this.#stream.write(`${text}\n`);
    if (this.#out !== undefined) writeFileSync(join(this.#out, 'doctor-gpu.txt'), this.#text);
  }

  save(diagnosis: GpuDiagnosis): void {
    if (this.#out !== undefined)
      writeFileSync(join(this.#out, 'doctor-gpu.json'), `${JSON.stringify(diagnosis, undefined, 1)}\n`);
  }
}

export async function doctorGpu(options: GpuOptions): Promise<number> {
  const chosen = partsOf(options.only);
  const size = options.size ?? 'full';
  if (size !== 'full' && size !== 'small') throw new Error(`--size is full or small but got "${size}"`);
  const start = performance.now();
  const deadline = start + 1000 * numberOf('time-limit', options.timeLimit, 3600);
  const seed = numberOf('seed', options.seed, randomInt(1, 2 ** 31));
  const accelerator = native.acceleratorInfo();
  const peak = options.peak === undefined ? peakOf(deviceName()) : numberOf('peak', options.peak, 0);
  const log = new Log(options.out, options.json ? process.stderr : process.stdout);
  const found: GpuDiagnosis = {
    rankzero: packageVersion(),
    node: process.versions.node,
    date: new Date().toISOString(),
    machine: describeMachine(),
    accelerator,
    seed,
    size,
    peak,
    seconds: 0,
    parts: {},
    ok: false,
  };
  const finish = (): number => {
    found.seconds = (performance.now() - start) / 1000;
    log.save(found);
    if (options.json) console.log(JSON.stringify(found, undefined, 2));
    return found.ok ? 0 : 1;
  };

  log.line(`rankzero ${found.rankzero}, seed ${seed}`);
  for (const [name, text] of acceleratorRows(accelerator))
    log.line(`  ${name.padEnd(12)} ${text.replaceAll('\n', `\n${' '.repeat(15)}`)}`);
  log.line(`  ${'peak'.padEnd(12)} ${peak ? `${peak} TFLOP/s, dense bfloat16` : 'not known; give --peak TFLOPS'}`);
  if (accelerator.unavailable !== '') {
    log.line(`\nDevice cuda cannot be used: ${accelerator.unavailable}`);
    return finish();
  }
  const filter = options.units?.split(',').filter((text) => text !== '') ?? [];
  const partOptions: PartOptions = { seed, size, peak, filter, secondsLeft: 0 };
  for (const part of chosen) {
    log.line(`\n${parts[part].title}`);
    const run = await runPart(part, partOptions, deadline, (result) => {
      for (const line of describeResult(result)) log.line(line);
    });
    found.parts[part] = run;
    if (run.failure === undefined && run.results.length + run.left.length === 0) log.line('  nothing for this device');
    if (run.failure !== undefined) log.line(`  FAILED ${run.failure}`);
    if (run.left.length > 0) log.line(`  left out, since the time was over: ${run.left.join(', ')}`);
    partOptions.copyBandwidth ??= copyBandwidthOf(run);
    log.save(found);
  }

  const runs = Object.values(found.parts);
  const units = runs.flatMap((run) => run.results);
  const failed = units.filter(({ failures }) => failures.length > 0).length;
  const broken = runs.filter(({ failure }) => failure !== undefined).length;
  const left = runs.reduce((sum, run) => sum + run.left.length, 0);
  // What was left out was not proven.
  found.ok = failed === 0 && broken === 0 && left === 0 && units.length > 0;
  for (const line of table(found)) log.line(line);
  const outcome = [
    `${units.length - failed} passed`,
    `${failed + broken} failed`,
    ...(left > 0 ? [`${left} left out`] : []),
  ];
  log.line(`\n${outcome.join(', ')}. ${found.ok ? 'All is well.' : 'Something is wrong: see above.'}`);
  return finish();
}

function copyBandwidthOf(run: PartRun): number | undefined {
  const measures = run.results.flatMap((result) => result.measures ?? []);
  return measures.find(({ name }) => name === copyName)?.value;
}

const short = (value: number): string => (value >= 1000 ? value.toFixed(0) : value.toPrecision(3));

function describeMeasure({ name, value, unit, fraction, of, milliseconds, spread }: Measure): string {
  const time =
    milliseconds === undefined
      ? ''
      : `${short(milliseconds)} ms${spread === undefined ? '' : ` ±${(50 * spread).toFixed(0)} %`}`;
  const share = fraction === undefined ? '' : `${(100 * fraction).toFixed(1)} % of ${of}`;
  return `  ${name.padEnd(70)} ${`${short(value)} ${unit}`.padStart(16)}  ${time.padStart(16)}  ${share}`.trimEnd();
}

function describeResult({ unit, failures, cases, errors, measures, note, seconds }: TimedResult): string[] {
  const lines: string[] = [];
  const worst = Object.entries(errors ?? {}).map(([dtype, error]) => `${dtype} ${error.toExponential(1)}`);
  if (cases !== undefined || failures.length > 0)
    lines.push(
      `  ${failures.length === 0 ? 'ok    ' : 'FAILED'} ${unit.padEnd(28)} ${String(cases ?? 0).padStart(4)} cases  ${`${seconds.toFixed(1)} s`.padStart(7)}  ${worst.join('  ')}`.trimEnd(),
    );
  for (const failure of failures) lines.push(`         ${failure.replaceAll('\n', '\n         ')}`);
  if (note !== undefined) lines.push(`  left out: ${unit} is ${note}`);
  for (const measure of measures ?? []) lines.push(describeMeasure(measure));
  return lines;
}

/** What a reader looks for first, again: what failed, and every measured quantity. */
function table(found: GpuDiagnosis): string[] {
  const lines: string[] = [];
  for (const [part, run] of Object.entries(found.parts)) {
    const failures = run.results.filter((result) => result.failures.length > 0);
    const rows = [
      ...failures.map(({ unit, failures }) => `  FAILED ${unit}: ${failures[0]!.split('\n')[0]}`),
      ...(run.failure === undefined ? [] : [`  FAILED ${run.failure.split('\n')[0]}`]),
      ...run.results.flatMap((result) => (result.measures ?? []).map(describeMeasure)),
    ];
    if (rows.length > 0) lines.push('', `${parts[part as PartName].title}: summary`, ...rows);
  }
  return lines;
}
