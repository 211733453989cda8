// What a plan says that crosses links between hosts, against what the connections of real ranks counted: to the byte.
import { execFile } from 'node:child_process';
import { copyFileSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { describe, expect, it } from 'vitest';
import type { DryWire } from '../../src/native.ts';
import type { PlannedMemory } from '../../src/tools/plan/report.ts';
import { cleanEnvironment, Lab, whyNoHosts } from './lab.ts';
import { expectOnHosts, hostsFixture, multiFixture } from './ranks.ts';

const { AutoConfig, planRun } = (await import(
  join(import.meta.dirname, '../../dist/index.js')
)) as typeof import('../../src/index.ts');

const run = promisify(execFile);
const model = join(import.meta.dirname, '../reference/llama');

/** Ranks of hosts that have as many each. */
const placed = (numHosts: number, ranksPerHost: number): number[][] =>
  Array.from({ length: numHosts }, (_, h) => Array.from({ length: ranksPerHost }, (_, i) => h * ranksPerHost + i));

type Sent = Record<keyof DryWire, { within: number; between: number }[]>;

describe.skipIf(whyNoHosts)(`a plan of several hosts${whyNoHosts ? ` (${whyNoHosts})` : ''}`, () => {
  it.each([
    [2, 1],
    [2, 2],
    [3, 1],
    [3, 2],
  ])('counts what each collective sends on %i hosts × %i', async (numHosts, ranksPerHost) => {
    using lab = new Lab(numHosts);
    const fixture = hostsFixture('traffic.mjs');
    const worldSize = numHosts * ranksPerHost;
    const out = await expectOnHosts(lab, placed(numHosts, ranksPerHost), fixture, { args: ['real'], timeout: 100_000 });
    for (const [rank, text] of out.entries()) {
      const real = JSON.parse(text) as Sent;
      const argv = [fixture, 'dry', String(rank), String(worldSize), String(ranksPerHost)];
      const { stdout } = await run(process.execPath, argv, { env: cleanEnvironment() });
      for (const [kind, calls] of Object.entries(JSON.parse(stdout) as Sent)) {
        // Parts of all_to_all go over connections to neighbours too.
        const planned = calls.map(({ within, between }) => between + (kind === 'allToAll' ? within : 0));
        const counted = real[kind as keyof DryWire].map(({ between }) => between);
        expect(planned, `${kind} of rank ${rank}`).toEqual(counted);
      }
    }
  });

  const strategies: [string, object][] = [
    ['FULL_SHARD', {}],
    ['SHARD_GRAD_OP, bfloat16', { shardingStrategy: 'SHARD_GRAD_OP', precision: 'bfloat16' }],
    ['HYBRID_SHARD', { shardingStrategy: 'HYBRID_SHARD' }],
    ['tensor parallelism within a host', { tensorParallelDegree: 2 }],
  ];
  it.each(strategies)('equals a run on 2 hosts × 2: %s', async (_, settings) => {
    using lab = new Lab(2);
    // A plan is of files that rank 0's host alone has: the other host sees a folder with the config in its place.
    const folder = mkdtempSync(join(tmpdir(), 'rankzero-traffic-'));
    copyFileSync(join(model, 'config.json'), join(folder, 'config.json'));
    const planned = { batchSize: 2, seqLength: 24, ...settings };
    const { tensorParallelDegree: tp, shardingStrategy: strategy, ...rest } = planned as Record<string, unknown>;
    const options = JSON.stringify({ tp, strategy, device: 'cpu', ...rest });
    const out = await expectOnHosts(lab, placed(2, 2), multiFixture('plan_real.mjs'), {
      args: [model, options],
      mountsOf: (host): Record<string, string> => (host === 0 ? {} : { [model]: folder }),
      timeout: 100_000,
    });
    rmSync(folder, { recursive: true });
    const config = await AutoConfig.fromPretrained(model);
    for (const [rank, text] of out.entries()) {
      const { memory: real, linkBytes } = JSON.parse(text) as { memory: PlannedMemory; linkBytes: number };
      const { memory, wire } = await planRun({ config, worldSize: 4, nnodes: 2, rank, ...planned });
      const { other, stepPeak, staging, loadPeak, ...exact } = real;
      expect(memory, `rank ${rank}`).toMatchObject(exact);
      // Rank 0 compares blocks of the files with the other hosts, one after the other, and a plan has no files.
      const block = rank === 0 && memory.staging === 0 ? 4096 : 0;
      expect(memory.staging, `rank ${rank}, staging`).toBe(staging - block);
      expect(memory.loadPeak, `rank ${rank}, load`).toBe(loadPeak - block);
      // As in test/multi/plan.test.ts.
      expect(Math.abs(memory.other - other), `rank ${rank}, other`).toBeLessThanOrEqual(128);
      expect(Math.abs(memory.stepPeak - stepPeak), `rank ${rank}, step`).toBeLessThanOrEqual(128);
      const between = Object.values(wire.step).reduce((sum, counts) => sum + counts.between, 0);
      expect(between, `rank ${rank}`).toBe(linkBytes);
    }
  });
});
