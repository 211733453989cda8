// The kernel tests of test/native, every op that the device has on the device; and order between streams, devices and memory.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { available, buildEmulated, emulated, environment, run, seeds } from './emulated.ts';

describe.skipIf(!available)('kernels on the emulated device', () => {
  beforeAll(buildEmulated, 600_000);

  // Two orders of threads; `npm run test:seeds` takes all.
  const taken = process.env.RANKZERO_TEST_SEEDS === 'all' ? seeds : seeds.slice(0, 2);
  it.each(taken)('equal their references, seed %i', async (seed) => {
    // A trial of the kernels for Hopper would hide that they are wrong.
    const env = environment(seed, { RANKZERO_ATTENTION: 'hopper' });
    const { code, stdout, stderr } = await run(join(emulated, 'kernels_test_emulated'), ['--cuda'], env);
    expect(stdout + stderr).toMatch(/^ok \d+ checks, device cuda/m);
    expect(code).toBe(0);
    expect(Number(/^ok (\d+) checks/m.exec(stdout)![1])).toBeGreaterThan(2000);
  });

  it('of attention equal theirs without those for Hopper', async () => {
    const env = environment(1, { RANKZERO_ATTENTION: 'mma' });
    const { code, stdout, stderr } = await run(join(emulated, 'kernels_test_emulated'), ['--cuda', 'attention'], env);
    expect(stdout + stderr).toMatch(/^ok \d+ checks, device cuda/m);
    expect(code).toBe(0);
  });

  it('are in order on streams where pages cannot be moved', async () => {
    const env = environment(2, { RANKZERO_EMULATED_WITHOUT_VMM: '1' });
    const { code, stdout, stderr } = await run(join(emulated, 'kernels_test_emulated'), ['--cuda', 'streams'], env);
    expect(stdout + stderr).toMatch(/^ok \d+ checks, device cuda/m);
    expect(code).toBe(0);
  });

  // Buffers of the test begin at any element, so that every GEMM here has the alignment of its first.
  it('ask cuBLASLt once for row counts of a class, and time its proposals once where that is wanted', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'rankzero-gemms-'));
    const log = join(folder, 'log');
    try {
      const env = environment(1, { RANKZERO_EMULATED_GEMM_LOG: log });
      const { stdout, stderr } = await run(join(emulated, 'kernels_test_emulated'), ['--cuda', 'gemm_plans'], env);
      expect(stdout + stderr).toMatch(/^ok 11 checks, device cuda/m);
      const calls = readFileSync(log, 'utf8').trim().split('\n');
      // proposals columns rows depth wanted; gemm columns rows algorithm adds
      const gemm = (rows: number, algorithm: number, adds = 0) => `gemm 3 ${rows} ${algorithm} ${adds}`;
      const timed = (rows: number) => [0, 1, 2, 3].flatMap((algorithm) => Array<string>(4).fill(gemm(rows, algorithm)));
      const chosen = (call: string | undefined) => Number(call!.split(' ')[3]);
      const [first, second] = [chosen(calls[26]), chosen(calls.at(-1))];
      expect(calls).toEqual([
        'proposals 3 144 8 1',
        ...[130, 140, 144].map((rows) => gemm(rows, 0)),
        'proposals 3 160 8 1',
        ...[145, 130].map((rows) => gemm(rows, 0)),
        // What is added to in place cannot be repeated.
        'proposals 3 144 8 1',
        gemm(131, 0, 1),
        'proposals 3 144 8 4',
        ...timed(131),
        ...[131, 132, 133].map((rows) => gemm(rows, first)),
        gemm(134, first, 1),
        'proposals 3 144 8 4', // with a bias
        ...timed(135),
        gemm(135, second),
      ]);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  it('add a bias of their own where cuBLASLt does not', async () => {
    const env = environment(1, { RANKZERO_EMULATED_WITHOUT_EPILOGUES: '1' });
    const { code, stdout, stderr } = await run(join(emulated, 'kernels_test_emulated'), ['--cuda', 'linear'], env);
    expect(stdout + stderr).toMatch(/^ok \d+ checks, device cuda/m);
    expect(code).toBe(0);
  });
});
