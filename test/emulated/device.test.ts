// Device `cuda` as programs see it: tensors, streams, memory, errors, gradients.
import { cpSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import type { NativeAccelerator } from '../../src/native.ts';
import { hostOps } from '../../src/tools/gpu/ops.ts';
import { available, buildEmulated, emulated, runNode, seeds } from './emulated.ts';

const fixture = join(import.meta.dirname, 'fixtures/device.mjs');

describe.skipIf(!available)('device cuda, emulated', () => {
  beforeAll(buildEmulated, 600_000);

  const scenario = async (name: string, seed: number, env: Record<string, string> = {}): Promise<void> => {
    const { code, stdout, stderr } = await runNode([fixture, name], seed, env);
    expect(stderr.replace(/^==.*makecontext.*\n/m, '') + stdout).toBe('passed\n');
    expect(code).toBe(0);
  };

  it('has every op of the CPU but those for host memory', async () => {
    const { stdout } = await runNode([fixture, 'ops'], 1);
    const { cpu, cuda } = JSON.parse(stdout) as { cpu: string[]; cuda: string[] };
    expect(cpu.length).toBeGreaterThan(35);
    expect(cuda).toEqual(cpu.filter((op: string) => !hostOps.has(op)));
  });

  it.each(seeds)('moves tensors of every dtype there and back, seed %i', (seed) => scenario('tensors', seed));
  it.each(seeds)('trains as the CPU does, seed %i', (seed) => scenario('training', seed));
  it.each(seeds)('orders streams by events, seed %i', (seed) => scenario('streams', seed));
  it.each(seeds)('has ops of a program, through host memory, seed %i', (seed) => scenario('hostOp', seed));
  it('takes the kernels that a call asks for', () => scenario('kernels', 1));
  it.each(['mma', 'hopper'])('takes the kernels that the environment names where no call does: %s', (kernels) =>
    scenario('defaultKernels', 1, { RANKZERO_ATTENTION: kernels }),
  );
  it('is not opened with kernels that do not exist', async () => {
    const { code, stderr } = await runNode([fixture, 'defaultKernels'], 1, { RANKZERO_ATTENTION: 'flash' });
    expect(code).not.toBe(0);
    expect(stderr).toContain('RANKZERO_ATTENTION must be mma or hopper but is flash');
  });
  it('names the devices that an op mixes', () => scenario('mixed', 1));
  it('counts its memory, and says what is wrong when there is none left', () =>
    scenario('memory', 1, { RANKZERO_EMULATED_MEMORY: String(600 << 20) }));
  it('counts its memory where pages cannot be moved', () =>
    scenario('memory', 1, { RANKZERO_EMULATED_MEMORY: String(600 << 20), RANKZERO_EMULATED_WITHOUT_VMM: '1' }));
  it.each([1, 2])('gets values that the host has yet to compute, seed %i', (seed) => scenario('fromHost', seed));
  it.each(seeds)('is in profiles, in its own time, seed %i', (seed) => scenario('profile', seed));
  it('draws the random bits of the CPU', () => scenario('random', 1));
  it.each([1, 2])('goes to files and comes from them in parts, seed %i', (seed) => scenario('files', seed));

  it('is described by doctor, with the libraries that were found', async () => {
    const { stdout } = await runNode([join(import.meta.dirname, '../../dist/cli/main.js'), 'doctor', '--json'], 1);
    const { accelerator } = JSON.parse(stdout);
    expect(accelerator).toMatchObject({ built: true, unavailable: '', driver: 13000 });
    expect(accelerator.devices).toMatchObject([{ name: 'emulated device', capability: '9.0' }]);
    const [driver, cublaslt, nccl] = accelerator.libraries;
    expect(driver).toMatchObject({ name: 'CUDA driver', version: 'CUDA 13.0', problem: '' });
    expect(cublaslt).toMatchObject({ name: 'cuBLASLt', version: '13.0.0', problem: '' });
    expect(cublaslt.path).toContain('emulated/libcublasLt.so.13');
    expect(nccl.name).toBe('NCCL');
  });

  it.each(['tensors', 'streams', 'mixed'])('does without waits for values where a device has none: %s', (name) =>
    scenario(name, 1, { RANKZERO_EMULATED_WITHOUT_VALUE_WAITS: '1' }),
  );

  const doctor = async (env: Record<string, string>): Promise<NativeAccelerator> => {
    const { stdout } = await runNode([join(import.meta.dirname, '../../dist/cli/main.js'), 'doctor', '--json'], 1, env);
    return JSON.parse(stdout).accelerator;
  };

  it('is not used where the kernels are compiled for another one', async () => {
    const why = 'emulated device: its compute capability is 8.0, and this build has kernels for 90a only';
    const { stdout } = await runNode([fixture, 'unavailable'], 1, { RANKZERO_EMULATED_CAPABILITY: '80' });
    expect(stdout).toBe(`ERR_CUDA_UNAVAILABLE device cuda cannot be used: ${why}\n`);
    const auto = await runNode([fixture, 'select'], 1, { RANKZERO_EMULATED_CAPABILITY: '80' });
    expect(auto.stdout).toBe(`cpu, auto: ${why}\n`);
    const { devices } = await doctor({ RANKZERO_EMULATED_CAPABILITY: '103' });
    expect(devices).toMatchObject([{ capability: '10.3', problem: expect.stringContaining('90a only') }]);
  });

  it('takes the cuBLASLt of its driver, and says what is wrong with a newer one', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'rankzero-libraries-'));
    const [old, recent] = ['12', '13'].map((version) => join(folder, `libcublasLt.so.${version}`));
    const wanted = { RANKZERO_CUBLASLT_PATH: '', LD_LIBRARY_PATH: folder };
    try {
      for (const path of [old!, recent!]) cpSync(join(emulated, 'libcublasLt.so.13'), path);
      const pathWith = async (driver: string) =>
        (await doctor({ ...wanted, RANKZERO_EMULATED_DRIVER: driver })).libraries[1]!.path;
      expect(await pathWith('13000')).toBe(recent);
      expect(await pathWith('12040')).toBe(old);
      rmSync(old!);
      const { libraries, unavailable } = await doctor({ ...wanted, RANKZERO_EMULATED_DRIVER: '12040' });
      expect(libraries[1]).toMatchObject({
        path: recent,
        problem: 'it needs a driver for CUDA 13, and this one is for 12.4',
      });
      expect(unavailable).toMatch(
        /^there is no device: the driver is for CUDA 12\.4, and this build needs one for \d+\.0 or newer$/,
      );
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  it('is not used without a driver, saying where one was looked for', async () => {
    const { stdout } = await runNode([fixture, 'unavailable'], 1, {
      RANKZERO_CUDA_DRIVER_PATH: '/nowhere/libcuda.so.1',
    });
    expect(stdout).toMatch(/^ERR_CUDA_UNAVAILABLE device cuda cannot be used: there is no NVIDIA driver/);
    expect(stdout).toContain('/nowhere/libcuda.so.1: cannot open shared object file');
    expect(stdout).toContain('from RANKZERO_CUDA_DRIVER_PATH');
  });
});
