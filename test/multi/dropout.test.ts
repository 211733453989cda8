// Training with dropout is the same however batch, rows and columns are divided, and whatever runs again in backward: every element
// draws by what it is of the whole.
import { beforeAll, expect, it } from 'vitest';
import { expectRanks, fixture } from './helpers.ts';
import { relative } from './reference_run.ts';

interface Settings {
  tp?: number;
  sequenceParallel?: boolean;
  recompute?: 'all' | 'selective';
  gradAccum?: number;
  p?: number;
  /** On the inputs of adapters, and nowhere else. */
  lora?: boolean;
}

interface Result {
  losses: number[];
  norms: number[];
}

async function run(world: number, settings: Settings[]): Promise<Result[]> {
  const { stdout } = await expectRanks(world, fixture('dropout.mjs'), { args: [JSON.stringify(settings)] });
  return stdout.flatMap((text) => {
    const results = text.split('RESULT ').slice(1);
    expect(results.length).toBe(settings.length);
    return results.map((json) => JSON.parse(json) as Result);
  });
}

let alone: Result;
let adapted: Result;
beforeAll(async () => {
  [alone, adapted] = (await run(1, [{}, { lora: true }])) as [Result, Result];
}, 60_000);

it('drops something, and not always the same', { timeout: 60_000 }, async () => {
  const [without, less] = (await run(1, [{ p: 0 }, { p: 0.1 }])) as [Result, Result];
  const [plain] = (await run(1, [{ p: 0, lora: true }])) as [Result];
  for (const step of [0, 1, 2]) {
    expect(relative(without.losses[step]!, alone.losses[step]!)).toBeGreaterThan(1e-4);
    expect(relative(plain.losses[step]!, adapted.losses[step]!)).toBeGreaterThan(1e-4);
    expect(relative(less.losses[step]!, alone.losses[step]!)).toBeGreaterThan(1e-4);
  }
});

it.each<[string, number, Settings[]]>([
  [
    'one rank, with checkpointing and accumulation',
    1,
    [{ recompute: 'all' }, { recompute: 'selective' }, { gradAccum: 2 }, { lora: true, recompute: 'all' }],
  ],
  ['two shards', 2, [{}, { recompute: 'all' }, { gradAccum: 2 }, { lora: true }]],
  [
    'tensor-parallel degree 2',
    2,
    [
      { tp: 2 },
      { tp: 2, recompute: 'all' },
      { tp: 2, sequenceParallel: true },
      { tp: 2, lora: true },
      { tp: 2, lora: true, sequenceParallel: true, recompute: 'all' },
    ],
  ],
  [
    'tensor-parallel degree 2 and two shards',
    4,
    [{ tp: 2 }, { tp: 2, sequenceParallel: true, recompute: 'selective' }, { tp: 2, gradAccum: 2, recompute: 'all' }],
  ],
])('%s', { timeout: 120_000 }, async (_, world, settings) => {
  const results = await run(world, settings);
  expect(results.length).toBe(world * settings.length);
  for (const [i, { losses, norms }] of results.entries()) {
    const whole = settings[i % settings.length]!.lora ? adapted : alone;
    expect(losses.length).toBe(3);
    for (const [step, loss] of losses.entries())
      expect(relative(loss, whole.losses[step]!), `loss ${step}`).toBeLessThan(1e-5);
    for (const [step, norm] of norms.entries())
      expect(relative(norm, whole.norms[step]!), `norm ${step}`).toBeLessThan(1e-5);
  }
});
