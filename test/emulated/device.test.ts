// Device `cuda` as programs see it: tensors, streams, memory, errors, gradients.
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { available, buildEmulated, runNode, seeds } from './emulated.ts';

const fixture = join(import.meta.dirname, 'fixtures/device.mjs');

describe.skipIf(!available)('device cuda, emulated', () => {
  beforeAll(buildEmulated, 600_000);

  const scenario = async (name: string, seed: number, env: Record<string, string> = {}): Promise<void> => {
    const { code, stdout, stderr } = await runNode([fixture, name], seed, env);
    expect(stderr.replace(/^==.*makecontext.*\n/m, '') + stdout).toBe('passed\n');
    expect(code).toBe(0);
  };

  it('has every op of the CPU', async () => {
    const { stdout } = await runNode([fixture, 'ops'], 1);
    const { cpu, cuda } = JSON.parse(stdout) as { cpu: string[]; cuda: string[] };
    expect(cpu.length).toBeGreaterThan(35);
    expect(cuda).toEqual(cpu);
  });

  it.each(seeds)('moves tensors of every dtype there and back, seed %i', (seed) => scenario('tensors', seed));
  it.each(seeds)('trains as the CPU does, seed %i', (seed) => scenario('training', seed));
  it.each(seeds)('orders streams by events, seed %i', (seed) => scenario('streams', seed));
  it('names the devices that an op mixes', () => scenario('mixed', 1));
  it('counts its memory, and says what is wrong when there is none left', () =>
    scenario('memory', 1, { RANKZERO_EMULATED_MEMORY: String(600 << 20) }));
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

  it('is not used without a driver, saying where one was looked for', async () => {
    const { stdout } = await runNode([fixture, 'unavailable'], 1, {
      RANKZERO_CUDA_DRIVER_PATH: '/nowhere/libcuda.so.1',
    });
    expect(stdout).toMatch(/^ERR_CUDA_UNAVAILABLE device cuda cannot be used: there is no NVIDIA driver/);
    expect(stdout).toContain('/nowhere/libcuda.so.1: cannot open shared object file');
    expect(stdout).toContain('from RANKZERO_CUDA_DRIVER_PATH');
  });
});
