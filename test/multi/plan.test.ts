// The plan against real runs: every rank's peaks by kind, as the allocator counts them, equal to the byte.
import { execFile } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { PlanOptions } from '../../src/tools/plan/plan.ts';
import type { PlannedMemory, PlanReport } from '../../src/tools/plan/report.ts';
import { cleanEnvironment, expectRanks, fixture, runProcess } from './helpers.ts';

// The compiled package: a plan starts a process of its own.
const dist = join(import.meta.dirname, '../../dist');
const { AutoConfig, planRun } = (await import(join(dist, 'index.js'))) as typeof import('../../src/index.ts');

const run = promisify(execFile);
const dir = mkdtempSync(join(tmpdir(), 'rankzero-plan-'));
const medium = join(dir, 'medium');
const reference = (name: string): string => join(import.meta.dirname, '../reference', name);
const main = join(dist, 'cli/main.js');

beforeAll(async () => {
  await run(process.execPath, [fixture('make_model.mjs'), 'medium', medium], { env: cleanEnvironment() });
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

type Settings = Omit<PlanOptions, 'config' | 'worldSize' | 'rank'>;

async function expectPlanned(model: string, worldSize: number, settings: Settings): Promise<PlanReport[]> {
  const { tensorParallelDegree: tp, shardingStrategy: strategy, ...rest } = settings;
  const options = JSON.stringify({ tp, strategy, ...rest });
  const { stdout } = await expectRanks(worldSize, fixture('plan_real.mjs'), {
    args: [model, options],
    timeout: 100_000,
  });
  const real = stdout.map((text) => (JSON.parse(text) as { memory: PlannedMemory }).memory);
  const config = await AutoConfig.fromPretrained(model);
  const reports: PlanReport[] = [];
  for (const [rank, { other, stepPeak, ...memory }] of real.entries()) {
    const report = await planRun({ config, worldSize, rank, ...settings });
    expect(report.memory, `rank ${rank}`).toMatchObject(memory);
    // Not to the byte: the numbers of the step before are freed when JavaScript has read them, sooner or later.
    expect(Math.abs(report.memory.other - other), `rank ${rank}, other`).toBeLessThanOrEqual(128);
    expect(Math.abs(report.memory.stepPeak - stepPeak), `rank ${rank}, step`).toBeLessThanOrEqual(128);
    reports.push(report);
  }
  return reports;
}

describe('a plan equals the run', () => {
  it.each([1, 2, 4])('of 254M parameters on %i ranks', async (world) => {
    const reports = await expectPlanned(medium, world, { batchSize: 1, seqLength: 32 });
    const total = reports[0]!.model.parameters;
    expect(total).toBe(2 * 32_000 * 1024 + 16 * (1024 * 1024 * 3 + 3 * 1024 * 2816 + 2 * 1024) + 1024);
    // Nothing is padded here, so the traffic is known exactly. Ranks of one host map each other's shards, so parameters are
    // gathered once a step: backward finds what forward found.
    const share = (4 * (world - 1)) / world;
    for (const [rank, { model, memory, wire }] of reports.entries()) {
      expect(model.units).toBe(19);
      expect(model.largestUnit).toEqual({ name: 'model.embed_tokens', parameters: 32_768_000, bytes: 131_072_000 });
      expect(memory.parameters).toBeGreaterThanOrEqual((4 * total) / world);
      expect(wire.load.scatter.within).toBe(rank === 0 ? total * share : 0);
      expect(wire.step.reduceScatter.within).toBe(total * share);
      expect(wire.step.allGather.within).toBe(world === 1 ? 0 : total * share);
      expect(wire.step.allReduce.within).toBe(((4 + 8) * 2 * (world - 1)) / world); // gradient norm; loss and stop request
      expect(wire.step.broadcast.calls + wire.step.send.calls).toBe(0);
    }
  });

  const cases: [string, string, number, Settings][] = [
    ['bfloat16 and checkpointing', 'llama', 2, { precision: 'bfloat16', activationCheckpointing: true }],
    ['a selective one', 'llama', 2, { activationCheckpointing: true, recompute: 'selective' }],
    ['shards that are padded', 'llama-bias', 3, { gradAccum: 2 }],
    ['NO_SHARD', 'llama', 2, { shardingStrategy: 'NO_SHARD', gradAccum: 2 }],
    ['SHARD_GRAD_OP', 'llama3-rope-tied', 2, { shardingStrategy: 'SHARD_GRAD_OP', precision: 'bfloat16' }],
    ['replicas', 'llama', 4, { shardingStrategy: 'HYBRID_SHARD', hybridShardDegree: 2 }],
    ['tensor parallelism', 'llama', 2, { tensorParallelDegree: 2 }],
    ['tensor parallelism, shards and rows', 'llama', 4, { tensorParallelDegree: 2, sequenceParallel: true }],
    ['an adapter', 'llama', 2, { loraR: 4, precision: 'bfloat16' }],
    ['an adapter and tensor parallelism', 'llama', 4, { loraR: 4, loraDora: true, tensorParallelDegree: 2 }],
    ['SGD', 'llama', 2, { optimizer: 'sgd' }],
    ['AdamW of 8 bits', 'llama', 4, { optimizer: 'adamw8bit', tensorParallelDegree: 2 }],
    ['Adafactor', 'llama', 4, { optimizer: 'adafactor', tensorParallelDegree: 2 }],
    ['SGD without momentum', 'llama', 2, { optimizer: 'sgd', momentum: 0 }],
    ['a quantised base', 'llama', 2, { quantize: 'nf4', precision: 'bfloat16' }],
    ['a quantised base and tensor parallelism', 'gpt-neox', 4, { quantize: 'int8', tensorParallelDegree: 2 }],
    ['experts', 'mixtral', 2, { tensorParallelDegree: 2, precision: 'bfloat16' }],
  ];
  it.each(cases)('with %s (%s, %i ranks)', async (_, name, world, settings) => {
    await expectPlanned(reference(name), world, { batchSize: 2, seqLength: 24, ...settings });
  });
});

// Llama 3.1 405B.
const huge = {
  model_type: 'llama',
  hidden_size: 16_384,
  num_hidden_layers: 126,
  vocab_size: 128_256,
  num_attention_heads: 128,
  num_key_value_heads: 8,
  intermediate_size: 53_248,
  max_position_embeddings: 131_072,
  dtype: 'bfloat16',
};

describe('a model of 405 billion parameters', () => {
  it.each([
    [64, 1],
    [1024, 8],
  ])('is planned on %i ranks, %i of them tensor-parallel, in seconds', async (worldSize, tensorParallelDegree) => {
    const start = performance.now();
    const { model, memory, wire, ranks } = await planRun({
      config: huge,
      worldSize,
      tensorParallelDegree,
      precision: 'bfloat16',
      batchSize: 1,
      seqLength: 4096,
      activationCheckpointing: true,
    });
    expect(performance.now() - start).toBeLessThan(20_000); // 1.3 to 2 s on an idle core
    expect(model.parameters).toBe(405_853_388_800);
    expect(ranks).toEqual({
      worldSize,
      nnodes: 1,
      rank: 0,
      replicas: 1,
      shards: worldSize / tensorParallelDegree,
      tensorParallelDegree,
    });
    const shard = (4 * model.parameters) / worldSize;
    expect(memory.parameters / shard).toBeGreaterThanOrEqual(1); // with tensor parallelism norms are whole
    expect(memory.parameters / shard).toBeLessThan(1.01);
    expect(memory.optimizer / (2 * shard)).toBeCloseTo(1, 1);
    expect(memory.stepPeak).toBeGreaterThan(memory.parameters + memory.optimizer + memory.activations);
    expect(memory.stepPeak).toBeLessThan(
      memory.parameters + memory.optimizer + memory.activations + memory.gradients + memory.unshard + memory.other,
    );
    expect(wire.load.scatter.within / (4 * model.parameters * (1 - 1 / worldSize))).toBeCloseTo(1, 2);
  });

  it('can be read off the command line, as a table and as JSON', async () => {
    const path = join(dir, 'config.json');
    writeFileSync(path, JSON.stringify(huge));
    const flags = [
      'plan',
      '--model',
      path,
      '--world-size',
      '128',
      '--tp',
      '8',
      '--precision',
      'bfloat16',
      '--checkpointing',
    ];
    const batch = ['--batch-size', '1', '--seq-len', '2048', '--hybrid-shard-degree', '8'];
    const table = await runProcess([main, ...flags, ...batch], {});
    expect(table.stderr).toBe('');
    expect(table.code).toBe(0);
    for (const text of [
      'llama, 406B parameters (405,853,388,800)',
      '2 replicas × 8 shards × 8 tensor-parallel',
      'largest: model.layers.0, 797 MB when gathered',
      'HYBRID_SHARD, activation checkpointing',
      'reduce-scatter',
    ])
      expect(table.stdout).toContain(text);
    const json = await runProcess([main, ...flags, ...batch, '--rank', '127', '--json'], {});
    const report = JSON.parse(json.stdout) as PlanReport;
    expect(report.ranks).toEqual({
      worldSize: 128,
      nnodes: 1,
      rank: 127,
      replicas: 2,
      shards: 8,
      tensorParallelDegree: 8,
    });
    expect(report.settings).toMatchObject({ batchSize: 1, seqLength: 2048, strategy: 'HYBRID_SHARD' });
    expect(report.memory.staging).toBe(0);
  });

  it('is refused on degrees that do not fit, with those that do', async () => {
    const refusal = async (options: Partial<PlanOptions>): Promise<string> =>
      planRun({ config: huge, worldSize: 48, ...options }).then(
        () => 'planned',
        (error: Error) => `${error.name}: ${error.message}`,
      );
    expect(await refusal({ tensorParallelDegree: 5 })).toMatch(
      /OptionsError: tp: got 5.* 48 ranks.*nearest are 4 and 6/,
    );
    expect(await refusal({ tensorParallelDegree: 6 })).toMatch(
      /RangeError: .*128 attention heads do not divide by 6; .*fit 48 ranks: 4 and 8$/,
    );
    expect(await refusal({ hybridShardDegree: 7, tensorParallelDegree: 2 })).toMatch(
      /hybridShardDegree: got 7.* 24 data-parallel ranks.*nearest are 6 and 8/,
    );
    expect(await refusal({ rank: 48 })).toMatch(/RangeError: rank must be a whole number from 0 to 47, got 48/);
    expect(await refusal({ config: { ...huge, model_type: 'gpt' } })).toMatch(/model_type "gpt" is not supported/);
    const flags = ['plan', '--model', medium, '--world-size', '4', '--tp', '3'];
    const { code, stdout, stderr } = await runProcess([main, ...flags], {});
    expect([code, stdout]).toEqual([1, '']);
    expect(stderr).toContain('tp: got 3, wanted a divisor of the 4 ranks (nproc): the nearest are 2 and 4');
  });
});
