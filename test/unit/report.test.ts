import { appendFileSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { Environment } from '../../src/train/report/environment.ts';
import { ReportWriter, renderReport } from '../../src/train/report/html.ts';
import { MetricsWriter, readMetrics } from '../../src/train/report/metrics.ts';
import { combineReporters, type Reporter } from '../../src/train/reporter.ts';
import { evalRecord, runInfo, runSummary, stepRecord } from './report_fixtures.ts';

const environment: Environment = {
  rankzero: '0.1.0',
  node: '20.19.0',
  system: 'Debian',
  processor: 'a processor',
  cores: 2,
  memoryBytes: 16e9,
  isa: 'avx2',
  oneDNN: '2.6.3',
  threads: 1,
  cuda: false,
};

let dir: string;
let path: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'rankzero-report-'));
  path = join(dir, 'metrics.jsonl');
});
afterEach(() => rmSync(dir, { recursive: true }));

function steps(reporter: Reporter, from: number, to: number, total = 10): void {
  for (let step = from; step <= to; step++) reporter.onStep?.(stepRecord({ step, totalSteps: total }));
}

describe('metrics.jsonl', () => {
  it('holds one object a line, in the order of the run', () => {
    const writer = new MetricsWriter(path, environment);
    writer.onStart(runInfo());
    writer.onEval(evalRecord());
    steps(writer, 1, 3);
    writer.onCheckpoint(dir, 3);
    writer.onEnd(runSummary({ steps: 3 }));
    const lines = readFileSync(path, 'utf8')
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line));
    expect(lines.map((line) => line.kind)).toEqual(['start', 'eval', 'step', 'step', 'step', 'checkpoint', 'end']);
    expect(lines[2]).toMatchObject({ step: 1, loss: 5.25, tokensPerSecond: 4800 });
    expect(lines[2].time).toBeGreaterThan(1.7e9);
  });

  it('a resumed run drops steps after its checkpoint and a torn line, and keeps the rest', () => {
    const killed = new MetricsWriter(path, environment);
    killed.onStart(runInfo());
    steps(killed, 1, 6);
    appendFileSync(path, '{"kind":"step","ste');
    const resumed = new MetricsWriter(path, environment);
    resumed.onStart(runInfo({ startStep: 4 }));
    steps(resumed, 5, 8);
    const seen = readMetrics(path).flatMap((line) => (line.kind === 'step' ? [line.step] : []));
    expect(seen).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
  });

  it('a run from the start replaces the file', () => {
    for (let i = 0; i < 2; i++) {
      const writer = new MetricsWriter(path, environment);
      writer.onStart(runInfo());
      steps(writer, 1, 2);
    }
    expect(readMetrics(path)).toHaveLength(3);
  });
});

describe('report.html', () => {
  function report(totalSteps: number, model = 'models/tiny'): string {
    const html = join(dir, 'report.html');
    const reporter = combineReporters([new MetricsWriter(path, environment), new ReportWriter(path, html)]);
    reporter.onStart?.(runInfo({ totalSteps, model }));
    reporter.onEval?.(evalRecord());
    reporter.onSample?.({
      step: 0,
      prompt: 'Define </script><script>alert(1)</script>',
      answer: '<b>bold</b> & "quoted"',
    });
    steps(reporter, 1, totalSteps, totalSteps);
    reporter.onEval?.(evalRecord({ step: totalSteps, loss: 4.05 }));
    reporter.onEnd?.(runSummary());
    return readFileSync(html, 'utf8');
  }

  const dataOf = (html: string) =>
    JSON.parse(/<script type="application\/json" id="data">(.*?)<\/script>/s.exec(html)![1]!) as {
      steps: Record<string, number[]>;
      evals: { step: number; loss: number }[];
    };

  it('is self-contained: nothing is fetched', () => {
    const html = report(10);
    expect(html).not.toMatch(/\b(?:src|href)\s*=|@import|url\(/);
    expect(html).not.toMatch(/https?:\/\/(?!github\.com\/leeoniya|www\.w3\.org)/);
    expect(html).toContain('uPlot');
  });

  it('shows curves, evaluation before and after, settings and environment', () => {
    const html = report(10);
    expect(dataOf(html).steps.step).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    expect(dataOf(html).evals).toEqual([
      { step: 0, loss: 6.03 },
      { step: 10, loss: 4.05 },
    ]);
    expect(html).toContain('−32.8 %');
    expect(html).toContain('FULL_SHARD');
    expect(html).toContain('a processor');
  });

  it('escapes what comes from models and data', () => {
    const html = report(3, '<img onerror=x>');
    expect(html).not.toContain('<script>alert');
    expect(html).not.toContain('<img');
    expect(html).not.toContain('<b>bold');
  });

  it('averages long runs down to a page that stays small', () => {
    const columns = dataOf(report(9000)).steps;
    expect(columns.loss!.length).toBeLessThanOrEqual(2000);
    expect(columns.step!.at(-1)).toBe(9000);
  });

  it('names what is trained where the rest is frozen', () => {
    const start = (trainableParameters: number) =>
      renderReport([{ kind: 'start', time: 1.7e9, ...runInfo({ trainableParameters }), environment }]);
    expect(start(3_148_992)).toContain('llama, 3.1M parameters.');
    expect(start(32_768)).toContain('llama, 3.1M parameters, 32.8k trained (1.0 %).');
  });

  it('draws a run that ended before its first step', () => {
    const html = renderReport([{ kind: 'start', time: 1.7e9, ...runInfo(), environment }]);
    expect(html).toContain('of 100');
    expect(html).not.toContain('GPU memory');
  });

  it('shows the memory of a GPU, and which one it was', () => {
    const info = runInfo({ device: 'cuda', deviceReason: 'auto: NVIDIA H100', backend: 'nccl' });
    const memory = [2e9, 3e9].map((deviceMemoryBytes) => ({ deviceMemoryBytes, deviceReservedBytes: 5e9 }));
    const html = renderReport([
      { kind: 'start', time: 1.7e9, ...info, environment },
      ...memory.map((fields, i) => ({ kind: 'step' as const, time: 1.7e9, ...stepRecord({ step: i + 1, ...fields }) })),
    ]);
    expect(html).toMatch(/Peak GPU memory.*3\.0 GB.*in use, 5\.0 GB reserved, rank 0/);
    expect(html).toContain('"deviceMemoryBytes":[2000000000,3000000000]');
    expect(html).toContain('cuda, auto: NVIDIA H100');
  });
});
