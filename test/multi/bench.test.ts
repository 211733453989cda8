// Every bench runs, on tiny settings and without the peer, and its JSON has the form that readers rely on. No times are judged.
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { describe, expect, it } from 'vitest';
import { cleanEnvironment } from './helpers.ts';

const folder = join(import.meta.dirname, '../../bench');

interface Measured {
  median: number;
  runs: number[];
}
interface Result {
  sides: Record<string, Record<string, Measured>>;
  ratios: Record<string, Record<string, { ratio: number; min: number; max: number }>>;
  noise: { otherCores: Record<string, number[]>; repeatedBecauseDisturbed: number };
  points?: Result[];
  exponents?: Record<string, Record<string, number>>;
}

async function run(bench: string, ...args: string[]) {
  const { stdout, stderr } = await promisify(execFile)(
    process.execPath,
    [join(folder, `${bench}.mjs`), '--quick', ...args],
    {
      env: cleanEnvironment(),
      maxBuffer: 1 << 24,
    },
  );
  return { json: JSON.parse(stdout), table: stderr };
}

function expectResult({ sides, ratios, noise }: Result): void {
  expect(Object.keys(sides)[0]).toBe('rankzero');
  for (const metrics of Object.values(sides)) {
    expect(Object.keys(metrics)).not.toEqual([]);
    for (const [name, { median, runs }] of Object.entries(metrics)) {
      expect(median, name).toBeTypeOf('number');
      expect(runs, name).toHaveLength(1);
    }
  }
  // Every other side is compared with ours.
  expect(Object.keys(ratios)).toEqual(Object.keys(sides).slice(1));
  for (const metrics of Object.values(ratios))
    for (const { ratio, min, max } of Object.values(metrics)) expect(ratio >= min && ratio <= max).toBe(true);
  expect(Object.keys(noise.otherCores)).toEqual(Object.keys(sides));
}

describe('bench', () => {
  it.each([
    ['training', []],
    ['training', ['--ranks', '2', '--against-independent', '--precision', 'bfloat16']],
    ['training', ['--ranks', '2', '--tp', '2', '--sequence-parallel', '--against-threads']],
    ['start', []],
    ['collectives', []],
    ['ops', []],
    ['calls', []],
    ['growth', []],
    ['gpu/training', ['--device', 'cpu']],
    ['gpu/load', ['--device', 'cpu']],
  ])('%s %j', async (bench, args) => {
    const { json, table } = await run(bench, ...args);
    expect(json).toMatchObject({
      bench,
      date: expect.stringMatching(/^\d{4}-\d\d-\d\dT/),
      machine: { cpu: expect.any(String), cores: expect.any(Number), node: process.versions.node },
      settings: { quick: true, repetitions: 1 },
    });
    const results = (json.results as Result[]).flatMap((result) => result.points ?? [result]);
    expect(results).not.toEqual([]);
    for (const result of results) expectResult(result);
    for (const { exponents } of json.results as Result[])
      if (exponents) expect(exponents.rankzero!.stepSeconds).toBeTypeOf('number');
    expect(table).toMatch(/^-{2,} {2}-{2,}/m);
  });

  it('refuses an option that it does not know, and says which there are', async () => {
    await expect(run('training', '--rank', '2')).rejects.toMatchObject({
      code: 2,
      stderr: expect.stringMatching(/'--rank'[\s\S]*--ranks/),
    });
  });
});
