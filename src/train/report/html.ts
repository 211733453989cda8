// report.html: one self-contained page drawn from metrics.jsonl, so that a resumed run shows all its steps.
import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { basename } from 'node:path';
import {
  formatBytes,
  formatChange,
  formatCount,
  formatParameters,
  formatSeconds,
  formatWhole,
} from '../../core/format.ts';
import type { EvalRecord, Reporter, SampleRecord, StepRecord } from '../reporter.ts';
import { type MetricsLine, readMetrics } from './metrics.ts';
import { script, style } from './page.ts';

type Line<Kind extends MetricsLine['kind']> = Extract<MetricsLine, { kind: Kind }>;

const MAX_POINTS = 2000;

const escapeHtml = (text: unknown): string => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

/** JSON inside a script element must not be able to end it. */
const scriptJson = (value: unknown): string => JSON.stringify(value).replace(/</g, '\\u003c');

/** Columns for the charts; long runs are averaged down to at most MAX_POINTS. */
function columns(steps: readonly StepRecord[]): Record<string, number[]> {
  const stride = Math.ceil(steps.length / MAX_POINTS);
  const groups: StepRecord[][] = [];
  for (let i = 0; i < steps.length; i += stride) groups.push(steps.slice(i, i + stride));
  const mean = (key: keyof StepRecord): number[] =>
    groups.map((group) => Number((group.reduce((sum, r) => sum + (r[key] ?? 0), 0) / group.length).toPrecision(7)));
  return {
    step: groups.map((group) => group.at(-1)!.step),
    loss: mean('loss'),
    learningRate: mean('learningRate'),
    gradNorm: mean('gradNorm'),
    tokensPerSecond: mean('tokensPerSecond'),
    memoryBytes: mean('memoryBytes'),
    ...(hasDevice(steps) ? { deviceMemoryBytes: mean('deviceMemoryBytes') } : {}),
  };
}

const hasDevice = (steps: readonly StepRecord[]): boolean => steps.some((r) => r.deviceMemoryBytes !== undefined);

const tile = (label: string, value: string, detail = ''): string =>
  `<div class="card tile"><div class="label">${label}</div><div class="value">${value}</div><div class="detail">${detail}</div></div>`;

function change(label: string, before: EvalRecord, after: EvalRecord, key: 'loss' | 'perplexity'): string {
  const show = (record: EvalRecord): string =>
    key === 'loss' ? record.loss.toFixed(3) : formatCount(record.perplexity);
  const mood = after[key] < before[key] ? 'good' : 'bad';
  const detail = `<span class="${mood}">${formatChange(before[key], after[key])}</span>`;
  return tile(label, `<span class="from">${show(before)} →</span> ${show(after)}`, detail);
}

function tiles(start: Line<'start'>, steps: StepRecord[], evals: EvalRecord[]): string {
  const seconds = steps.reduce((sum, r) => sum + r.seconds, 0);
  const tokens = steps.reduce((sum, r) => sum + r.tokens, 0);
  const last = steps.at(-1);
  const [before, after] = [evals[0], evals.at(-1)];
  const parts: string[] = [];
  if (before && after && before.step < after.step) {
    parts.push(change('Evaluation loss', before, after, 'loss'), change('Perplexity', before, after, 'perplexity'));
  } else if (after) {
    parts.push(tile('Evaluation loss', after.loss.toFixed(3), `after step ${after.step}`));
  }
  parts.push(
    tile(
      'Steps',
      formatWhole(last?.step ?? 0),
      `of ${formatWhole(start.totalSteps)}, ${(last?.epoch ?? 0).toFixed(2)} epochs`,
    ),
    tile('Training time', formatSeconds(seconds), `${formatWhole(tokens)} tokens`),
    tile(
      'Throughput',
      `${formatCount(Math.round(tokens / (seconds || 1)))} tok/s`,
      `${start.worldSize} rank${start.worldSize > 1 ? 's' : ''} together`,
    ),
    tile('Peak memory', formatBytes(Math.max(0, ...steps.map((r) => r.memoryBytes))), 'resident, rank 0'),
  );
  if (hasDevice(steps)) {
    const most = (key: 'deviceMemoryBytes' | 'deviceReservedBytes'): string =>
      formatBytes(Math.max(...steps.map((r) => r[key] ?? 0)));
    parts.push(
      tile('Peak GPU memory', most('deviceMemoryBytes'), `in use, ${most('deviceReservedBytes')} reserved, rank 0`),
    );
  }
  return `<div class="tiles">${parts.join('')}</div>`;
}

function samples(records: SampleRecord[]): string {
  const cards = [...groupByPrompt(records)].map(([prompt, answers]) => {
    const shown = answers.length > 1 ? [answers[0]!, answers.at(-1)!] : answers;
    const columns = shown.map((r) => {
      const when = r.step === 0 ? 'before training' : `after step ${r.step}`;
      return `<div><div class="label">${when}</div><p>${escapeHtml(r.answer.trim()) || '<span class="soft">(nothing)</span>'}</p></div>`;
    });
    return `<div class="sample"><div class="prompt">${escapeHtml(prompt)}</div><div class="answers">${columns.join('')}</div></div>`;
  });
  return cards.length > 0 ? `<section class="card"><h2>Sample answers</h2>${cards.join('')}</section>` : '';
}

function groupByPrompt(records: SampleRecord[]): Map<string, SampleRecord[]> {
  const groups = new Map<string, SampleRecord[]>();
  for (const record of records) groups.set(record.prompt, [...(groups.get(record.prompt) ?? []), record]);
  return groups;
}

function table(title: string, rows: Record<string, unknown>): string {
  const show = (value: unknown): string =>
    Array.isArray(value)
      ? value.map(String).join(', ')
      : typeof value === 'boolean'
        ? value
          ? 'yes'
          : 'no'
        : String(value);
  const cells = Object.entries(rows)
    .filter(([, value]) => value !== undefined && value !== '' && !(Array.isArray(value) && value.length === 0))
    .map(([key, value]) => `<tr><td>${escapeHtml(key)}</td><td>${escapeHtml(show(value))}</td></tr>`);
  return `<section class="card"><h2>${title}</h2><table>${cells.join('')}</table></section>`;
}

function environmentRows({
  environment: e,
  backend,
  worldSize,
  device,
  deviceReason,
}: Line<'start'>): Record<string, unknown> {
  return {
    rankzero: e.rankzero,
    'Node.js': e.node,
    system: e.system,
    processor: `${e.processor}, ${e.cores} cores`,
    memory: formatBytes(e.memoryBytes),
    kernels: `${e.isa}, oneDNN ${e.oneDNN}`,
    device: `${device}, ${deviceReason}`,
    ranks: `${worldSize} (${backend}), ${e.threads} thread${e.threads > 1 ? 's' : ''} each`,
  };
}

/** The page for the lines of a metrics file. */
export function renderReport(lines: readonly MetricsLine[]): string {
  const of = <Kind extends MetricsLine['kind']>(kind: Kind): Line<Kind>[] =>
    lines.filter((line): line is Line<Kind> => line.kind === kind);
  const start = of('start').at(-1);
  if (!start) throw new Error('the metrics file has no start line');
  const steps = of('step');
  const evals = of('eval');
  const load = of('load').at(-1);
  const require = createRequire(import.meta.url);
  const asset = (path: string): string => readFileSync(require.resolve(`uplot/dist/${path}`), 'utf8');
  const data = { steps: columns(steps), evals: evals.map(({ step, loss }) => ({ step, loss })) };
  const date = new Date(start.time * 1000).toISOString().slice(0, 16).replace('T', ' ');
  const title = `${basename(start.model)} on ${basename(String(start.options.data ?? 'data'))}`;
  const chart = (id: string, heading: string): string =>
    `<div class="card"><h2>${heading}</h2><div id="${id}"></div></div>`;
  const loaded = load ? `, loaded ${formatBytes(load.bytes)} in ${formatSeconds(load.seconds)}` : '';
  const interrupted = of('end').at(-1)?.interrupted
    ? '<p class="notice">Interrupted; the state was saved and the run can resume.</p>'
    : '';
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escapeHtml(title)} – rankzero</title>
<style>${asset('uPlot.min.css')}${style}</style>
</head>
<body>
<main>
<header>
<h1>${escapeHtml(title)}</h1>
<div class="soft">${escapeHtml(start.modelType)}, ${formatParameters(start.parameters, start.trainableParameters)}${loaded}. ${formatWhole(start.trainExamples)} examples${start.evalExamples ? `, ${formatWhole(start.evalExamples)} to evaluate` : ''}. ${date} UTC.</div>
${interrupted}
</header>
${tiles(start, steps, evals)}
<div class="charts">
${chart('loss', 'Loss')}
${chart('lr', 'Learning rate')}
${chart('grad', 'Gradient norm, before clipping')}
${chart('rate', 'Throughput, all ranks')}
${chart('memory', hasDevice(steps) ? 'Memory of rank 0' : 'Resident memory of rank 0')}
</div>
${samples(of('sample'))}
<div class="two">
${table('Settings', start.options)}
${table('Environment', environmentRows(start))}
</div>
<footer>Written by rankzero ${escapeHtml(start.environment.rankzero)}. The numbers are in metrics.jsonl beside this file.</footer>
</main>
<script type="application/json" id="data">${scriptJson(data)}</script>
<script>${asset('uPlot.iife.min.js')}</script>
<script>${script}</script>
</body>
</html>
`;
}

/** Writes the page at the end of a run. Must come after the MetricsWriter in the list of reporters. */
export class ReportWriter implements Reporter {
  readonly #metrics: string;
  readonly #path: string;

  constructor(metrics: string, path: string) {
    this.#metrics = metrics;
    this.#path = path;
  }

  onEnd(): void {
    writeFileSync(`${this.#path}.tmp`, renderReport(readMetrics(this.#metrics)));
    renameSync(`${this.#path}.tmp`, this.#path);
  }
}
