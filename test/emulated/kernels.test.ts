// The kernel tests of test/native, every op that the device has on the device; and order between streams, devices and memory.
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { available, buildEmulated, emulated, environment, run, seeds } from './emulated.ts';

describe.skipIf(!available)('kernels on the emulated device', () => {
  beforeAll(buildEmulated, 600_000);

  it.each(seeds)('equal their references, seed %i', async (seed) => {
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

  it('add a bias of their own where cuBLASLt does not', async () => {
    const env = environment(1, { RANKZERO_EMULATED_WITHOUT_EPILOGUES: '1' });
    const { code, stdout, stderr } = await run(join(emulated, 'kernels_test_emulated'), ['--cuda', 'linear'], env);
    expect(stdout + stderr).toMatch(/^ok \d+ checks, device cuda/m);
    expect(code).toBe(0);
  });
});
