// Generation on an emulated device: a model that is not wrapped, moved there whole, and `rankzero generate --device`.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { available, buildEmulated, runNode, seeds } from './emulated.ts';
import { tinyModel } from './tiny_model.ts';

const launcher = join(import.meta.dirname, '../../dist/cli/main.js');
const fixture = join(import.meta.dirname, 'fixtures/generate.mjs');

describe.skipIf(!available)('generate on an emulated device', () => {
  let dir: string;
  let model: string;
  beforeAll(async () => {
    buildEmulated();
    dir = await mkdtemp(join(tmpdir(), 'rankzero-generate-'));
    model = await tinyModel(join(dir, 'tiny'));
  }, 600_000);
  afterAll(() => rm(dir, { recursive: true }));

  const command = async (device: string, seed: number, devices = 1, memory = 1 << 30): Promise<string> => {
    const args = ['--model', model, '--prompt', 'Define whale', '--max-new-tokens', '24', '--device', device];
    const env = {
      RANKZERO_EMULATED_DEVICES: String(devices),
      RANKZERO_EMULATED_MEMORY: String(memory),
    };
    const { code, stdout, stderr } = await runNode([launcher, 'generate', ...args], seed, env);
    return code === 0 ? stdout : `exit code ${code}: ${stderr}`;
  };

  it('answers as the CPU does', async () => {
    const [cpu, cuda, auto] = await Promise.all([command('cpu', 1), command('cuda', 2), command('auto', 3)]);
    expect(cpu!.length).toBeGreaterThan(24);
    expect(cuda).toBe(cpu);
    expect(auto).toBe(cpu);
    expect(await command('auto', 1, 1, 4096)).toMatch(/out of memory on emulated device/);
  });

  it('takes the CPU for auto where there is no device, and refuses cuda', async () => {
    expect(await command('auto', 1, 0)).toBe(await command('cpu', 1, 0));
    expect(await command('cuda', 1, 0)).toMatch(/^exit code 1: .*device cuda cannot be used: there is no device/s);
    expect(await command('gpu', 1)).toMatch(/^exit code 1: .*auto, cpu, cuda/s);
  });

  it.each(seeds)('gives the tokens of the CPU to a program, seed %i', async (seed) => {
    const { stdout, stderr } = await runNode([fixture, model], seed);
    expect(stderr + stdout).toMatch(/passed\n$/);
  });
});
