// Optimizers and dropout on emulated devices: PyTorch's steps, the CPU's codes of 8 bits and its draws.
import { readFileSync } from 'node:fs';
import { beforeAll, describe, expect, it } from 'vitest';
import { expectRanks, fixture } from '../multi/helpers.ts';
import { relative } from '../multi/reference_run.ts';
import { caseDir } from '../reference/cases.ts';
import { available, buildEmulated, nodeVariables } from './emulated.ts';

interface Result {
  losses: number[];
  norms: number[];
}

async function run<T>(
  file: string,
  world: number,
  settings: readonly object[],
  env: Record<string, string>,
): Promise<T[][]> {
  const { stdout } = await expectRanks(world, fixture(file), {
    args: [JSON.stringify(settings)],
    env,
    timeout: 240_000,
  });
  return stdout.map((text) => {
    const results = text.split('RESULT ').slice(1);
    expect(results.length).toBe(settings.length);
    return results.map((json) => JSON.parse(json) as T);
  });
}

describe.skipIf(!available)('on emulated devices', () => {
  beforeAll(buildEmulated, 600_000);

  it('SGD and Adafactor take the steps of PyTorch', { timeout: 300_000 }, async () => {
    const recorded = JSON.parse(readFileSync(`${caseDir('llama')}/optimizers.json`, 'utf8'));
    const settings = ['sgd-nesterov', 'adafactor'].map((name) => ({ name, tp: 2, device: 'cuda', steps: [0, 5] }));
    for (const results of await run<Result>('optimizers.mjs', 2, settings, nodeVariables(1)))
      for (const [i, { losses }] of results.entries()) {
        expect(losses.length).toBe(5);
        for (const [step, loss] of losses.entries())
          expect(relative(loss, recorded.runs[settings[i]!.name].losses[step]), `loss ${step}`).toBeLessThan(1e-6);
      }
  });

  it('8-bit AdamW has the bits of the CPU', { timeout: 300_000 }, async () => {
    const settings = [{ name: 'llama-bias', steps: [0, 4], min8bitSize: 0 }];
    const [[cpu]] = (await run<string>('optimizer_bits.mjs', 1, settings, {})) as [[string]];
    const onDevices = settings.map((one) => ({ ...one, device: 'cuda' }));
    for (const world of [1, 2])
      for (const [digest] of await run<string>('optimizer_bits.mjs', world, onDevices, nodeVariables(2 + world)))
        expect(digest, `${world} ranks`).toBe(cpu);
  });

  it('dropout drops what it drops on the CPU', { timeout: 300_000 }, async () => {
    const settings = [{ tp: 2, sequenceParallel: true, recompute: 'all' }];
    const [[cpu]] = (await run<Result>('dropout.mjs', 1, [{}], {})) as [[Result]];
    const onDevices = settings.map((one) => ({ ...one, device: 'cuda' }));
    for (const [{ losses, norms }] of (await run<Result>('dropout.mjs', 2, onDevices, nodeVariables(5))) as [
      Result,
    ][]) {
      for (const [step, loss] of losses.entries()) expect(relative(loss, cpu.losses[step]!)).toBeLessThan(1e-5);
      for (const [step, norm] of norms.entries()) expect(relative(norm, cpu.norms[step]!)).toBeLessThan(1e-5);
      expect(losses.length).toBe(3);
    }
  });
});
