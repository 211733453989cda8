// Host memory while a 254M-parameter float32 model (1.0 GB) is loaded by rank 0 and wrapped (or divided) on two ranks, sampled
// from outside:
// the peak of Pss_Anon + Pss_Shmem of each rank stays under its shard + its two largest units + 150 MB.
import { execFile } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { cleanEnvironment, expectRanks, fixture, memoryOf } from './helpers.ts';

const megabyte = 1e6;
const dir = mkdtempSync(join(tmpdir(), 'rankzero-memory-'));
beforeAll(async () => {
  await promisify(execFile)(process.execPath, [fixture('make_model.mjs'), 'medium', join(dir, 'medium')], {
    env: cleanEnvironment(),
  });
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

describe('loading 1 GB on two ranks', () => {
  it.each([
    ['sharded', 1],
    ['divided over tensor-parallel ranks', 2],
  ])('%s keeps each rank at its shard and two units', async (_, tp) => {
    const pids = new Map<number, number>();
    const peaks = [0, 0];
    let samples = 0;
    const sample = (): void => {
      for (const [rank, pid] of pids) {
        peaks[rank] = Math.max(peaks[rank]!, memoryOf(pid));
        samples++;
      }
    };
    const timer = setInterval(sample, 20);
    const { stdout } = await expectRanks(2, fixture('fsdp_load.mjs'), {
      args: [join(dir, 'medium'), String(tp)],
      onLine: (rank, line) => {
        const begin = /^BEGIN (\d+)/.exec(line);
        if (begin) pids.set(rank, Number(begin[1]));
        if (line.startsWith('END')) {
          sample();
          pids.delete(rank);
        }
      },
    });
    clearInterval(timer);
    expect(samples).toBeGreaterThan(20);
    for (const [rank, text] of stdout.entries()) {
      const { shard, units, progress, last } = JSON.parse(/^END (.*)$/m.exec(text)![1]!);
      const [first, second] = [...units].sort((a: number, b: number) => b - a);
      // The sampler saw the shard arrive; otherwise it measured the wrong thing.
      expect(peaks[rank]).toBeGreaterThan(0.9 * shard);
      expect(peaks[rank]! / megabyte, `rank ${rank}`).toBeLessThan((shard + first + second) / megabyte + 150);
      expect(progress).toBe(units.length);
      expect(last).toBe(1);
    }
  });
});
