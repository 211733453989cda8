// A training loop of thousands of steps keeps memory, tensors and the JavaScript heap flat.
import { expect, test } from 'vitest';
import { expectRanks, fixture } from './helpers.ts';

interface Sample {
  step: number;
  rss: number;
  heapUsed: number;
  total: number;
  reserved: number;
  liveHandles: number;
}

test('memory is flat over 2,000 steps', async () => {
  // V8 would widen its young generation at times of its own.
  const env = { NODE_OPTIONS: '--max-semi-space-size=1' };
  const { stdout } = await expectRanks(2, fixture('leak.mjs'), { args: ['2000'], env, timeout: 110_000 });
  for (const text of stdout) {
    const samples = text
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as Sample);
    expect(samples.length).toBe(20);
    const early = samples[4]!;
    for (const late of samples.slice(10)) {
      expect(late.liveHandles).toBe(early.liveHandles);
      expect(late.total).toBe(early.total);
      expect(late.reserved - early.reserved).toBeLessThan(2e6);
      expect(late.heapUsed - early.heapUsed).toBeLessThan(2e6);
    }
    // Of the second half: minima of five samples.
    const least = (part: Sample[]): number => Math.min(...part.map(({ rss }) => rss));
    expect(least(samples.slice(15)) - least(samples.slice(10, 15))).toBeLessThan(4e6);
  }
}, 120_000);
