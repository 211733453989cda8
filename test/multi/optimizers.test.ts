// Ten steps of every optimizer equal PyTorch's, however the model is divided; and its state goes on in other divisions.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { caseDir, trainingRun } from '../reference/cases.ts';
import { expectRanks, fixture } from './helpers.ts';
import { relative } from './reference_run.ts';

interface Result {
  losses: number[];
  norms: number[];
  errors: Record<string, number>;
}

interface Settings {
  name: string;
  tp?: number;
  sequenceParallel?: boolean;
  load?: string;
  save?: string;
  /** From, to. */
  steps?: [number, number];
}

const recorded = JSON.parse(readFileSync(`${caseDir('llama')}/optimizers.json`, 'utf8')) as {
  runs: Record<string, { losses: number[]; grad_norms: number[] }>;
};
const names = Object.keys(recorded.runs);

/** What each rank says of each run. */
async function run(world: number, settings: readonly Settings[]): Promise<Result[][]> {
  const { stdout } = await expectRanks(world, fixture('optimizers.mjs'), { args: [JSON.stringify(settings)] });
  return stdout.map((text) => {
    const results = text.split('RESULT ').slice(1);
    expect(results.length).toBe(settings.length);
    return results.map((json) => JSON.parse(json) as Result);
  });
}

/** The steps that were taken are PyTorch's, and so are the weights after the last of them. */
function judge(ranks: readonly Result[][], settings: readonly Settings[]): void {
  for (const results of ranks)
    for (const [i, { losses, norms, errors }] of results.entries()) {
      const { name, steps: [from, to] = [0, 10] } = settings[i]!;
      const run = recorded.runs[name]!;
      expect(losses.length).toBe(to - from);
      for (const [step, loss] of losses.entries())
        expect(relative(loss, run.losses[from + step]!), `${name}: loss ${from + step}`).toBeLessThan(1e-6);
      for (const [step, norm] of norms.entries())
        expect(relative(norm, run.grad_norms[from + step]!), `${name}: norm ${from + step}`).toBeLessThan(1e-5);
      expect(Object.keys(errors).length).toBe(3);
      if (to < 10) continue;
      for (const [weight, error] of Object.entries(errors)) expect(error, `${name}: ${weight}`).toBeLessThan(1e-6);
    }
}

const divisions = [
  { world: 1 },
  { world: 2 },
  { world: 3 },
  { world: 2, tp: 2 },
  { world: 4, tp: 2, sequenceParallel: true },
];

describe.each(divisions)('on $world ranks, tensor-parallel degree $tp,', ({ world, ...division }) => {
  it('every optimizer takes the steps of PyTorch', { timeout: 120_000 }, async () => {
    const settings = names.map((name) => ({ name, ...division }));
    judge(await run(world, settings), settings);
  });
});

it('moments of 8 bits take nearly the steps of AdamW, in every division the same', { timeout: 120_000 }, async () => {
  const { losses: wanted } = trainingRun('llama');
  let alone: number[] | undefined;
  for (const { world, ...division } of divisions) {
    for (const [{ losses }] of (await run(world, [{ name: 'adamw8bit', ...division }])) as [Result][]) {
      alone ??= losses;
      expect(losses.length).toBe(10);
      for (const [step, loss] of losses.entries()) {
        expect(relative(loss, alone[step]!), `loss ${step}`).toBeLessThan(1e-5);
        expect(relative(loss, wanted[step]!), `loss ${step}`).toBeLessThan(1e-4);
      }
    }
  }
  expect(alone).not.toEqual(wanted);
});

it('state goes on at other numbers of ranks', { timeout: 120_000 }, async () => {
  const dir = mkdtempSync(join(tmpdir(), 'optimizers-'));
  try {
    const part = (division: object, load: string | undefined, save: string, steps: [number, number]): Settings[] =>
      names.map((name) => ({
        name,
        ...division,
        ...(load === undefined ? {} : { load: join(dir, `${load}-${name}`) }),
        save: join(dir, `${save}-${name}`),
        steps,
      }));
    const parts: [world: number, settings: Settings[]][] = [
      [3, part({}, undefined, 'a', [0, 3])],
      [4, part({ tp: 2 }, 'a', 'b', [3, 6])],
      [2, part({ tp: 2, sequenceParallel: true }, 'b', 'c', [6, 8])],
      [2, part({}, 'c', 'd', [8, 10])],
    ];
    for (const [world, settings] of parts) judge(await run(world, settings), settings);
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
});
