// Parts of doctor --gpu: what happens to a unit that ends its process or never ends, and what counts as equal.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { acceleratorRows, describeLibrary } from '../../src/cli/accelerator.ts';
import { relativeError } from '../../src/tools/gpu/check.ts';
import type { PartOptions } from '../../src/tools/gpu/part.ts';
import { runPart, type TimedResult } from '../../src/tools/gpu/run_part.ts';

const options: PartOptions = { seed: 1, size: 'small', filter: [], secondsLeft: 60 };

describe('a part in its processes', () => {
  let folder: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'rankzero-part-'));
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  /** A worker of four units; `b` does something else than give a result. */
  function worker(b: string): string {
    const script = join(folder, `${Math.random()}.mjs`);
    writeFileSync(
      script,
      `const { skip } = JSON.parse(process.argv[2]);
       const say = (line) => console.log(JSON.stringify(line));
       say({ units: ['a', 'b', 'c', 'd'] });
       for (const unit of ['a', 'b', 'c', 'd'].filter((name) => !skip.includes(name))) {
         say({ begin: unit });
         if (unit === 'b') { ${b} }
         say({ result: { unit, failures: [] }, seconds: 0 });
       }`,
    );
    return script;
  }
  const run = async (b: string, seconds = 20) => {
    const seen: TimedResult[] = [];
    const result = await runPart('ops', options, performance.now() + 1000 * seconds, (r) => seen.push(r), worker(b));
    expect(seen).toEqual(result.results);
    return result;
  };
  const failed = (results: TimedResult[]) => results.map(({ unit, failures }) => [unit, failures.length]);
  const others = [
    ['a', 0],
    ['b', 1],
    ['c', 0],
    ['d', 0],
  ];

  it('goes on behind a unit that a signal ends, and quotes its last words', async () => {
    const { results } = await run(
      `console.error('CUDA said no'); process.kill(process.pid, 'SIGSEGV'); await new Promise(() => setTimeout(() => {}, 5000));`,
    );
    expect(failed(results)).toEqual(others);
    expect(results[1]!.failures[0]).toMatch(/died of SIGSEGV:\nCUDA said no/);
  });

  it('starts a fresh process where the device is lost', async () => {
    const { results } = await run(`say({ result: { unit, failures: ['fault'] }, seconds: 0 }); process.exit(9);`);
    expect(failed(results)).toEqual(others);
  });

  it('ends with its time, without blaming the unit that was under way', async () => {
    const { results, left } = await run(`await new Promise(() => setTimeout(() => {}, 1e6));`, 1);
    expect(failed(results)).toEqual([['a', 0]]);
    expect(left).toEqual(['b', 'c', 'd']);
  });

  it('says why when it does not begin', async () => {
    const script = join(folder, 'none.mjs');
    writeFileSync(script, `throw new Error('no device here')`);
    const { failure } = await runPart('ops', options, performance.now() + 1e4, () => {}, script);
    expect(failure).toMatch(/exit code 1[\s\S]*no device here/);
  });
});

describe('the comparison', () => {
  it('never lets NaN pass, and lets infinities of both sides', () => {
    const of = (...values: number[]) => Float32Array.from(values);
    expect(relativeError(of(1, Number.NaN), of(1, 2))).toBeNaN();
    expect(relativeError(of(Number.NEGATIVE_INFINITY, 1), of(Number.NEGATIVE_INFINITY, 1))).toBe(0);
    expect(relativeError(of(1, 2), of(Number.POSITIVE_INFINITY, 2))).not.toBeLessThan(1);
    expect(relativeError(of(3, 4.5), of(3, 4))).toBeCloseTo(0.1, 6);
    expect(relativeError(of(1e-9), of(0))).toBe(Number.POSITIVE_INFINITY);
  });
});

describe('what doctor says of CUDA', () => {
  const found = { built: true, runtime: 13000, driver: 0, architectures: '90a', devices: [], libraries: [] };
  it.each([
    [
      'there is no NVIDIA driver (CUDA driver was not found; tried:\n  libcuda.so.1: none)',
      'there is no NVIDIA driver',
    ],
    ['there is no device: the driver sees none (of two)', 'there is no device: the driver sees none (of two)'],
  ])('is the reason on one line: %j', (unavailable, reason) =>
    expect(acceleratorRows({ ...found, unavailable })[0]).toEqual([
      'CUDA',
      `compiled for 90a with runtime 13.0; not used: ${reason}`,
    ]),
  );

  it('has, of a library that is not there, the places that were tried and what brings it', () => {
    const library = { name: 'NCCL', path: '', version: '', problem: '', tried: ['libnccl.so.2: none'] };
    expect(describeLibrary({ ...library, remedy: 'pip install it' })).toBe(
      'not found; tried:\n  libnccl.so.2: none\n  to have it: pip install it',
    );
    expect(describeLibrary({ ...library, remedy: '' })).toBe('not found; tried:\n  libnccl.so.2: none');
  });
});
