// The programs of examples/, run as the guide says.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { native } from '../../src/native.ts';
import { expectRanks } from './helpers.ts';

const out = mkdtempSync(join(tmpdir(), 'rankzero-examples-'));
afterAll(() => rmSync(out, { recursive: true, force: true }));
const example = (name: string): string => join(import.meta.dirname, '../../examples', name);

it.each([1, 2])('train.mjs on %i ranks', async (world) => {
  const folder = join(out, `train-${world}`);
  const { stdout } = await expectRanks(world, example('train.mjs'), { args: [folder, 'cpu', '21'] });
  expect(stdout[0]).toMatch(/^computing on cpu, as asked/);
  const [before, , , after] = [...stdout[0]!.matchAll(/loss ([\d.]+)/g)].map(([, text]) => Number(text));
  expect(after).toBeLessThan(before! - 1);
  expect(readdirSync(folder)).toContain('model.safetensors');
});

it.each([
  { world: 2, tp: 2 },
  { world: 4, tp: 2 },
  { world: 1, tp: 1 },
])('tensor_parallel.mjs on $world ranks', async ({ world, tp }) => {
  const folder = join(out, `tp-${world}`);
  const { stdout } = await expectRanks(world, example('tensor_parallel.mjs'), { args: [folder, String(tp), '11'] });
  const losses = [...stdout[0]!.matchAll(/loss ([\d.]+)/g)].map(([, text]) => Number(text));
  expect(losses.length).toBe(2);
  expect(losses[1]).toBeLessThan(losses[0]! - 0.2);
  expect(readdirSync(folder)).toContain('model.safetensors');
});

it.each([
  { world: 1, tp: 1 },
  { world: 2, tp: 2 },
])('lora.mjs on $world ranks', async ({ world, tp }) => {
  const folder = join(out, `lora-${world}`);
  const { stdout } = await expectRanks(world, example('lora.mjs'), { args: [folder, String(tp), '11'] });
  const losses = [...stdout[0]!.matchAll(/loss ([\d.]+)/g)].map(([, text]) => Number(text));
  expect(losses.length).toBe(2);
  expect(losses[1]).toBeLessThan(losses[0]! - 0.5);
  expect(readdirSync(folder).sort()).toEqual(['adapter_config.json', 'adapter_model.safetensors']);
});

const processor = `${cpus()[0]!.model}, ${native.info().isa}`;
/** What a build of `commit`, before the frame was rebuilt, made of the example: bits follow from the processor too. */
const recorded: {
  commit: string;
  processor: string;
  runs: Record<string, { losses: number[]; files: string }>;
} = JSON.parse(readFileSync(join(import.meta.dirname, 'custom_model.json'), 'utf8'));

describe('custom_model.mjs', () => {
  const run = async (world: number, tp: number): Promise<number[]> => {
    const folder = join(out, `custom-${world}-${tp}`);
    const { stdout } = await expectRanks(world, example('custom_model.mjs'), { args: [folder, String(tp), '31'] });
    const losses = [...stdout[0]!.matchAll(/loss ([\d.]+)/g)].map(([, text]) => Number(text));
    expect(losses.length).toBe(4);
    expect(losses[3]).toBeLessThan(losses[0]! - 1);
    expect(stdout[0]).toMatch(/saved .*; it says: Whale \(n\.\).+/);
    const before = recorded.runs[`${world} ranks, tp ${tp}`]!;
    for (const [i, loss] of losses.entries()) expect(loss).toBeCloseTo(before.losses[i]!, 2);
    if (processor === recorded.processor) {
      const digest = createHash('sha256');
      for (const file of ['config.json', 'model.safetensors']) digest.update(readFileSync(join(folder, file)));
      expect({ losses, files: digest.digest('hex') }, `as ${recorded.commit} made them`).toEqual(before);
    }
    return losses;
  };

  it('gives the same losses divided over ranks as on one', async () => {
    const alone = await run(1, 1);
    for (const [i, loss] of (await run(2, 2)).entries()) expect(loss).toBeCloseTo(alone[i]!, 2);
  });

  it.each([
    { world: 2, tp: 1 },
    { world: 4, tp: 2 },
  ])('trains on $world ranks, $tp of them for each layer', async ({ world, tp }) => {
    await run(world, tp);
  });
});

describe('custom_op.mjs', () => {
  const lossesIn = (text: string): number[] => [...text.matchAll(/loss ([\d.]+)/g)].map(([, loss]) => Number(loss));

  it('trains alone as on 2 ranks', async () => {
    const alone = lossesIn(execFileSync(process.execPath, [example('custom_op.mjs')], { encoding: 'utf8' }));
    expect(alone.length).toBe(6);
    expect(alone[5]).toBeLessThan(alone[0]! / 2);
    const { stdout } = await expectRanks(2, example('custom_op.mjs'));
    for (const [i, loss] of lossesIn(stdout[0]!).entries()) expect(Math.abs(loss - alone[i]!)).toBeLessThan(0.02);
  });

  it('the op of the guide', () => {
    const guide = readFileSync(new URL('../../docs/guide.md', import.meta.url), 'utf8');
    const program = guide.split('### Ops of your own')[1]!.match(/```js\n(.*?)```/s)![1]!;
    const args = ['--input-type=module', '--eval', program];
    const text = execFileSync(process.execPath, args, { encoding: 'utf8', cwd: join(import.meta.dirname, '../..') });
    expect(text).toMatch(/^Float32Array\(3\) \[\s*0\.07\d*,\s*0\.94\d*,\s*0\.18\d*\s*\]/);
  });
});
