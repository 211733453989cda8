// `rankzero convert`: what ranks saved becomes a Hugging Face folder, and what it writes is what ranks read.
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { caseDir } from '../reference/cases.ts';
import { familyCases } from '../reference/family.ts';
import { expectRanks, fixture, runProcess } from './helpers.ts';

const folder = mkdtempSync(join(tmpdir(), 'rankzero-convert-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const cli = join(import.meta.dirname, '../../dist/cli/main.js');
const convert = (...args: string[]): ReturnType<typeof runProcess> => runProcess([cli, 'convert', ...args], {});

async function ranks(world: number, what: string, settings: object) {
  const { stdout } = await expectRanks(world, fixture('transform_behaviour.mjs'), {
    args: [what, JSON.stringify(settings)],
  });
  const said = stdout.map((text) => JSON.parse(/^RESULT (.*)$/m.exec(text)![1]!));
  for (const { error } of said) expect(error).toBeUndefined();
  return said[0].result;
}

/** The tensors of a folder by name: dtype, shape and bytes. */
function tensors(dir: string): Map<string, string> {
  const file = readFileSync(join(dir, 'model.safetensors'));
  const start = 8 + Number(file.readBigUInt64LE(0));
  const { __metadata__, ...entries } = JSON.parse(file.subarray(8, start).toString());
  return new Map(
    (Object.entries(entries) as [string, { dtype: string; shape: number[]; data_offsets: [number, number] }][])
      .map(
        ([
          key,
          {
            dtype,
            shape,
            data_offsets: [from, to],
          },
        ]): [string, string] => [
          key,
          `${dtype} ${shape} ${file.subarray(start + from, start + to).toString('base64')}`,
        ],
      )
      .sort(([a], [b]) => (a < b ? -1 : 1)),
  );
}

describe.each(familyCases)('%s', (name) => {
  it('comes back from any division as it was', { timeout: 60_000 }, async () => {
    const [split, back] = [join(folder, `${name}-split`), join(folder, `${name}-back`)];
    const { code, stdout, stderr } = await convert(caseDir(name), split, '--tp', '4', '--shards', '3');
    expect(stderr).toBe('');
    expect(stdout).toMatch(/sharded checkpoint, \d+ parameters/);
    expect(code).toBe(0);
    expect(readdirSync(split).filter((file) => file.startsWith('rank-')).length).toBe(12);
    expect((await convert(split, back, '--model', caseDir(name))).code).toBe(0);
    expect(tensors(back)).toEqual(tensors(caseDir(name)));
    expect(readFileSync(join(back, 'config.json'), 'utf8')).toContain('"model_type"');
  });
});

it('goes between what ranks save and read, with the moments', { timeout: 60_000 }, async () => {
  const [saved, hf, other] = ['saved', 'hf', 'other'].map((one) => join(folder, one)) as [string, string, string];
  const before = await ranks(4, 'reshard', { tp: 2, save: true, out: saved });
  expect((await convert(saved, hf, '--model', caseDir('llama'))).code).toBe(0);
  expect([...tensors(hf).keys()]).toEqual([...tensors(caseDir('llama')).keys()]);
  expect(tensors(hf)).not.toEqual(tensors(caseDir('llama')));
  // To another division, which ranks then train on from, as if nothing had happened.
  expect((await convert(saved, other, '--model', caseDir('llama'), '--tp', '4')).code).toBe(0);
  const after = await ranks(2, 'reshard', { tp: 2, out: other });
  expect(after.digest).toBe(before.digest);
  for (const [i, loss] of after.losses.entries()) expect(Math.abs(loss / before.losses[i] - 1)).toBeLessThan(1e-6);
});

describe('errors', () => {
  it.each([
    [['/nowhere', 'x'], /\/nowhere/],
    [[caseDir('llama'), caseDir('llama')], /the source and the result are the same folder/],
    [[caseDir('llama'), join(folder, 'x'), '--tp', '3'], /the 4 attention heads do not divide by 3/],
    [[caseDir('llama'), join(folder, 'x'), '--tp', '0'], /Wanted a whole number of at least 1/],
  ])('%j', async (args, message) => {
    const { code, stderr } = await convert(...args);
    expect(code).toBe(1);
    expect(stderr).toMatch(message);
    expect(readdirSync(folder).filter((one) => one.startsWith('x'))).toEqual([]);
  });

  it('a checkpoint of another model', async () => {
    const split = join(folder, 'neighbour');
    expect((await convert(caseDir('llama'), split, '--tp', '2')).code).toBe(0);
    const nameless = await convert(split, join(folder, 'y'));
    expect(nameless.stderr).toMatch(/does not say which model it is of; give --model/);
    const other = await convert(split, join(folder, 'y'), '--model', caseDir('llama-bias'));
    expect(other.stderr).toMatch(/is a checkpoint of another model than .*q_proj\.bias is missing/);
  });
});
