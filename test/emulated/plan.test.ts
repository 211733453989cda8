// `rankzero plan --device cuda` against runs on emulated devices: every rank's peaks by kind, as the device's allocator counts them.
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import type { PlannedMemory, PlanReport } from '../../src/tools/plan/report.ts';
import { expectRanks, fixture } from '../multi/helpers.ts';
import { available, buildEmulated, nodeVariables, runNode } from './emulated.ts';

const main = join(import.meta.dirname, '../../dist/cli/main.js');
const reference = (name: string): string => join(import.meta.dirname, '../reference', name);

const cases: [string, string, number, Record<string, unknown>][] = [
  ['FULL_SHARD', 'llama', 2, {}],
  ['bfloat16', 'llama', 2, { precision: 'bfloat16', strategy: 'SHARD_GRAD_OP' }],
  ['bfloat16 throughout', 'llama', 2, { precision: 'bfloat16', reducePrecision: 'bfloat16' }],
  ['replicas', 'llama', 4, { strategy: 'HYBRID_SHARD', hybridShardDegree: 2 }],
  ['tensor parallelism', 'llama', 2, { tp: 2 }],
];

describe.skipIf(!available)('a plan of devices equals the run', () => {
  beforeAll(buildEmulated, 600_000);

  it.each(cases)('with %s (%s, %i ranks)', async (_, name, world, more) => {
    const options = { batchSize: 2, seqLength: 24, ...more };
    const { stdout } = await expectRanks(world, fixture('plan_real.mjs'), {
      args: [reference(name), JSON.stringify({ device: 'cuda', ...options })],
      env: { ...nodeVariables(1), RANKZERO_EMULATED_DEVICES: String(world) },
      timeout: 120_000,
    });
    const flags = Object.entries(options).flatMap(([key, value]) => [
      `--${key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`,
      String(value),
    ]);
    for (const [rank, text] of stdout.entries()) {
      const { memory: real } = JSON.parse(text) as { memory: PlannedMemory };
      const place = ['--model', reference(name), '--device', 'cuda', '--nproc', String(world), '--rank', String(rank)];
      // By the addon of the emulator, whose blocks have a gap behind them.
      const plan = await runNode([main, 'plan', '--json', ...place, ...flags], 1);
      const { memory } = JSON.parse(plan.stdout) as PlanReport;
      const { other, ...exact } = real;
      expect(memory, `rank ${rank}`).toMatchObject(exact);
      // Kernels take scratch memory that depends on the device: a plan counts that of the loss, which can be large, and no other.
      expect(other - memory.other, `rank ${rank}, other`).toBeGreaterThanOrEqual(0);
      expect(other - memory.other, `rank ${rank}, other`).toBeLessThanOrEqual(16384);
    }
  });
});
