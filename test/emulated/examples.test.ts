// examples/train.mjs on two emulated devices, as it stands, with a smaller model and less data.
import { copyFile, mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { expectRanks } from '../multi/helpers.ts';
import { available, buildEmulated, nodeVariables } from './emulated.ts';
import { tinyModel } from './tiny_model.ts';

const root = join(import.meta.dirname, '../..');

describe.skipIf(!available)('examples on emulated devices', () => {
  let dir: string;
  beforeAll(async () => {
    buildEmulated();
    dir = await mkdtemp(join(tmpdir(), 'rankzero-examples-'));
    await Promise.all(['data', 'node_modules'].map((name) => mkdir(join(dir, name))));
    await symlink(root, join(dir, 'node_modules/rankzero'));
    await copyFile(join(root, 'examples/train.mjs'), join(dir, 'train.mjs'));
    await tinyModel(join(dir, 'moby-llama'));
    for (const [split, lines] of [
      ['train', 48],
      ['eval', 6],
    ] as const) {
      const name = `data/devils-dictionary.${split}.jsonl`;
      const text = await readFile(join(root, 'examples', name), 'utf8');
      await writeFile(join(dir, name), text.split('\n').slice(0, lines).join('\n'));
    }
  }, 600_000);
  afterAll(() => rm(dir, { recursive: true }));

  it('train.mjs takes the devices that there are, and learns as on the CPU', async () => {
    const run = async (device: string, env: Record<string, string> = {}): Promise<string> => {
      const args = [join(dir, device), device, '3'];
      const { stdout } = await expectRanks(2, join(dir, 'train.mjs'), { args, env, timeout: 240_000 });
      return stdout[0]!;
    };
    const numbers = (text: string): number[] =>
      [...text.matchAll(/loss ([\d.]+)/g)].map(([, number]) => Number(number));
    const [cpu, auto] = [await run('cpu'), await run('auto', { ...nodeVariables(1), RANKZERO_EMULATED_DEVICES: '2' })];
    expect(cpu).toContain('computing on cpu, as asked');
    expect(auto).toContain('computing on cuda, auto: emulated device on rank 0, one for each rank');
    expect(numbers(cpu).length).toBe(3);
    for (const [i, loss] of numbers(auto).entries()) expect(loss).toBeCloseTo(numbers(cpu)[i]!, 2);
  });
});
