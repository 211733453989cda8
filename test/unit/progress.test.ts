import { describe, expect, it } from 'vitest';
import { formatBytes, formatChange, formatCount, formatRate, formatSeconds } from '../../src/core/format.ts';
import { Progress } from '../../src/train/report/progress.ts';
import { evalRecord, runInfo, runSummary, stepRecord } from './report_fixtures.ts';

function run(
  stream: { isTTY?: boolean; columns?: number },
  act: (progress: Progress, tick: (ms: number) => void) => void,
) {
  let text = '';
  let now = 0;
  const write = (chunk: string): void => {
    text += chunk;
  };
  const tick = (ms: number): void => {
    now += ms;
  };
  act(new Progress({ stream: { ...stream, write }, now: () => now, report: true }), tick);
  return text;
}

function wholeRun(progress: Progress, tick: (ms: number) => void): void {
  progress.onStart(runInfo());
  for (let i = 1; i <= 20; i++) {
    tick(200);
    progress.onLoad({ bytes: i * 50e6, totalBytes: 1e9, seconds: i * 0.2 });
  }
  const before = evalRecord();
  progress.onEval(before);
  progress.onSample({ step: 0, prompt: 'Define whale (n.)', answer: 'a\n  fish' });
  for (let step = 1; step <= 100; step++) {
    tick(250);
    progress.onStep(stepRecord({ step, etaSeconds: (100 - step) / 4 }));
  }
  const after = evalRecord({ step: 100, loss: 4.05, perplexity: 57.4 });
  progress.onEval(after);
  progress.onSample({ step: 100, prompt: 'Define whale (n.)', answer: 'a mammal' });
  progress.onEnd(runSummary({ evalBefore: before, evalAfter: after }));
}

describe('Progress', () => {
  it('writes plain lines, a few dozen for a run, where stdout is not a terminal', () => {
    const text = run({}, wholeRun);
    expect(text).not.toContain('\r');
    expect(text).not.toContain('\x1b');
    const lines = text.split('\n');
    expect(lines.filter((line) => line.startsWith('step')).length).toBeLessThanOrEqual(22);
    expect(lines.filter((line) => line.startsWith('loading')).length).toBeLessThanOrEqual(3);
    expect(lines.find((line) => line.startsWith('loaded'))).toBe('loaded   1.0 GB in 4.0 s  0.25 GB/s');
    expect(lines.find((line) => line.startsWith('step   1/'))).toMatch(
      /loss 5\.2500 {2}lr 6\.00e-4 {2}grad 1\.50 {2}4\.8k tok\/s {2}ETA 25 s/,
    );
    expect(lines.some((line) => line.startsWith('step 100/100'))).toBe(true);
  });

  it('keeps one live line within the width of a terminal', () => {
    const text = run({ isTTY: true, columns: 60 }, wholeRun);
    for (const piece of text.split('\r\x1b[K').slice(1)) {
      if (!piece.includes('\n')) expect(piece.length).toBeLessThan(60);
    }
    expect(text).toContain('█');
    expect(text).toMatch(/step 100\/100 .*\n/);
  });

  it('sums up evaluation, the same prompt before and after, and the paths', () => {
    const text = run({}, wholeRun);
    expect(text).toContain('evaluation loss  6.030 before, 4.050 after (−32.8 %)');
    expect(text).toMatch(/Define whale \(n\.\)\n {4}before {2}a fish\n {4}after {3}a mammal/);
    expect(text).toMatch(/report {2}out\/report\.html/);
  });

  it('says what it computes on, and what that took', () => {
    const text = run({}, (progress) => {
      progress.onStart(runInfo({ device: 'cuda', deviceReason: 'as asked: NVIDIA H100' }));
      progress.onEnd(runSummary({ peakDeviceMemoryBytes: 21e9, peakDeviceReservedBytes: 24e9 }));
    });
    expect(text).toContain('\ncuda, as asked: NVIDIA H100\n');
    expect(text).toContain('GPU memory  at most 21.0 GB in use, 24.0 GB reserved (rank 0)');
    expect(run({}, wholeRun)).not.toContain('GPU memory');
  });

  it('says how to go on after an interruption', () => {
    const text = run({}, (progress) => {
      progress.onStart(runInfo());
      progress.onStep(stepRecord({ step: 7 }));
      progress.onEnd(runSummary({ steps: 7, interrupted: true }));
    });
    expect(text).toContain('Interrupted after step 7 of 100');
    expect(text).toContain('--resume');
  });
});

describe('formats', () => {
  it('reads well at every size', () => {
    expect([0, 12, 999, 1234, 99_960, 3_148_992, 7e9].map(formatCount)).toEqual([
      '0',
      '12',
      '999',
      '1.2k',
      '100k',
      '3.1M',
      '7.0B',
    ]);
    expect([0, 999, 6.3e6, 181e6, 25e9].map(formatBytes)).toEqual(['0 B', '999 B', '6.3 MB', '181 MB', '25.0 GB']);
    expect([0.02, 4.23, 42, 185, 7800].map(formatSeconds)).toEqual(['20 ms', '4.2 s', '42 s', '3:05', '2:10:00']);
    expect(formatChange(6.03, 4.05)).toBe('−32.8 %');
    expect([0, 6e-4].map(formatRate)).toEqual(['0', '6.00e-4']);
  });
});
