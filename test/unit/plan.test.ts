// Plans before any process is started: degrees that do not fit, flags, and the table.
import { describe, expect, it } from 'vitest';
import { buildPlanCommand, describePlan, planFlags } from '../../src/cli/plan.ts';
import { divisors, neighbours } from '../../src/distributed/degrees.ts';
import { AutoConfig } from '../../src/models/config.ts';
import { checkDivision, onMeta } from '../../src/tools/plan/measure.ts';
import { planRun } from '../../src/tools/plan/plan.ts';
import type { PlanReport } from '../../src/tools/plan/report.ts';

const config = {
  model_type: 'llama',
  hidden_size: 96,
  num_hidden_layers: 2,
  vocab_size: 100,
  num_attention_heads: 12,
  num_key_value_heads: 4,
  intermediate_size: 88,
};

const plan = (options: object) => planRun({ config, worldSize: 8, ...options });

describe('degrees', () => {
  it('that are near another', () => {
    expect(divisors(12)).toEqual([1, 2, 3, 4, 6, 12]);
    expect(neighbours(divisors(12), 5)).toBe('4 and 6');
    expect(neighbours(divisors(12), 100)).toBe('12');
    expect(neighbours([2, 4], 1)).toBe('2');
  });

  it('that the model does not divide by are refused, with those that it does', () => {
    const check = (tp: number, nproc: number, keys = {}) => {
      checkDivision(onMeta(AutoConfig.fromObject({ ...config, ...keys })), { tp, nproc });
    };
    for (const tp of [1, 2, 4]) expect(() => check(tp, 24)).not.toThrow();
    expect(() => check(8, 24)).toThrow(
      '12 attention heads do not divide by 8; the nearest degrees that fit 24 ranks: 4',
    );
    expect(() => check(3, 24)).toThrow(/4 key\/value heads neither divide by 3 nor .*; .* fit 24 ranks: 2 and 4$/);
    expect(() => check(3, 9, { num_key_value_heads: 12 })).toThrow(
      /the 88 output features of \S+gate_proj do not divide by 3; .* fit 9 ranks: 1$/,
    );
    // Heads for all: what is left is the world.
    expect(() => check(12, 12, { intermediate_size: 96 })).not.toThrow();
  });

  it('that contradict are refused before anything starts', async () => {
    await expect(plan({ tensorParallelDegree: 3 })).rejects.toThrow(
      'tp: got 3, wanted a divisor of the 8 ranks (nproc): the nearest are 2 and 4',
    );
    await expect(plan({ hybridShardDegree: 3, tensorParallelDegree: 2 })).rejects.toThrow(
      'got 3, wanted a divisor of the 4 data-parallel ranks (nproc / tp): the nearest are 2 and 4',
    );
    await expect(plan({ hybridShardDegree: 2, shardingStrategy: 'FULL_SHARD' })).rejects.toThrow('got FULL_SHARD');
    await expect(plan({ batchSize: 0 })).rejects.toThrow('batchSize: got 0, wanted a whole number of at least 1');
    for (const rank of [8, -1, 0.5])
      await expect(plan({ rank })).rejects.toThrow(`rank must be a whole number from 0 to 7, got ${rank}`);
  });
});

describe('flags', () => {
  const parse = (...argv: string[]) => planFlags(buildPlanCommand().parse(argv, { from: 'user' }).opts());

  it('are those of finetune, and name what is wrong', async () => {
    await expect(parse('--model', 'm', '--nproc', '8', '--batch-size', 'x', '--seq-length', '0')).rejects.toThrow(
      '--batch-size: got "x", wanted a whole number of at least 1\n--seq-length: got "0", wanted',
    );
    await expect(parse('--model', 'm', '--world-size', '4', '--tp', '3')).rejects.toThrow('the 4 ranks (nproc)');
    await expect(parse('--model', 'm', '--seq-len', '1.5')).rejects.toThrow('--seq-length: got "1.5"');
    await expect(parse('--model', 'm', '--world-size', '4', '--nproc', '2')).rejects.toThrow('give one of them');
    await expect(parse('--model', 'm', '--nnodes', '0')).rejects.toThrow('--nnodes needs a whole number from 1');
    await expect(parse('--model', 'm', '--nnodes', '2', '--nproc', '3', '--tp', '4')).rejects.toThrow('the 6 ranks');
    await expect(plan({ nnodes: 3 })).rejects.toThrow('nnodes must divide the 8 ranks, got 3');
    await expect(parse('--model', './no-such-folder')).rejects.toThrow('no-such-folder');
  });

  it('have a help with every option and an example', () => {
    let help = '';
    buildPlanCommand()
      .configureOutput({ writeOut: (text) => (help += text), getOutHelpWidth: () => 100 })
      .outputHelp();
    for (const text of ['--nproc', '--tp', '--hybrid-shard-degree', '--precision', '--json', 'rankzero plan --model'])
      expect(help).toContain(text);
  });
});

describe('the table', () => {
  const none = { calls: 0, within: 0, between: 0 };
  const silent = {
    broadcast: none,
    scatter: none,
    allReduce: none,
    allGather: none,
    reduceScatter: none,
    allToAll: none,
    send: none,
    barrier: none,
  };
  const report: PlanReport = {
    model: {
      modelType: 'llama',
      parameters: 1_234_567,
      trainableParameters: 1_234_567,
      units: 4,
      largestUnit: { name: 'lm_head', parameters: 1e6, bytes: 2e6 },
    },
    ranks: { worldSize: 12, nnodes: 1, rank: 3, replicas: 2, shards: 3, tensorParallelDegree: 2 },
    settings: {
      device: 'cpu',
      strategy: 'HYBRID_SHARD',
      optimizer: 'adamw',
      precision: 'bfloat16',
      activationCheckpointing: true,
      sequenceParallel: false,
      batchSize: 2,
      gradAccum: 5,
      seqLength: 100,
    },
    memory: {
      parameters: 1e6,
      gradients: 2e6,
      optimizer: 3e6,
      activations: 4e6,
      unshard: 5e6,
      staging: 0,
      other: 7e3,
      loadPeak: 1.5e6,
      stepPeak: 11e6,
    },
    wire: {
      load: { ...silent, scatter: { calls: 2, within: 9e6, between: 0 } },
      step: { ...silent, allGather: { calls: 3, within: 8e6, between: 0 } },
    },
  };

  it('says all of it', () => {
    const lines = describePlan(report, 100e6).split('\n');
    const has = (pattern: RegExp) =>
      expect(
        lines.filter((line) => pattern.test(line)),
        String(pattern),
      ).toHaveLength(1);
    has(/^llama, 1\.2M parameters \(1,234,567\)$/);
    has(/^ {2}ranks +12 +2 replicas × 3 shards × 2 tensor-parallel$/);
    has(/^ {2}units +4 +largest: lm_head, 2\.0 MB when gathered$/);
    has(/^ {2}tokens a step +6,000 +5 passes of 2 × 100 on each data-parallel rank$/);
    has(/^ {2}precision +bfloat16 +HYBRID_SHARD, activation checkpointing$/);
    has(/^Memory of rank 3/);
    has(/^ {2}compute copies +5\.0 MB/);
    has(/^ {2}peak in a step +11\.0 MB$/);
    has(/^ {2}scatter +9\.0 MB +0 B$/);
    has(/^ {2}all-gather +0 B +8\.0 MB$/);
    expect(lines.join('\n')).not.toMatch(/broadcast|reduce-scatter|all-reduce/);
    has(/^All 12 ranks on one host would take 132 MB, .* This machine has 100 MB: too little for them\.$/);
    expect(describePlan(report, 200e6)).toMatch(/This machine has 200 MB\.$/);
  });

  it('has columns for other hosts, and memory of a device apart from that of its host', () => {
    const step = { ...report.wire.step, allGather: { calls: 3, within: 8e6, between: 5e6 } };
    const onDevices: PlanReport = {
      ...report,
      ranks: { ...report.ranks, nnodes: 3 },
      settings: { ...report.settings, device: 'cuda' },
      hostMemory: { loadPeak: 3e6, stepPeak: 1e6 },
      wire: { ...report.wire, step },
    };
    const lines = describePlan(onDevices, 100e6).split('\n');
    for (const line of [
      '  hosts                          3  of 4 ranks',
      'Memory of rank 3 on its device, each at its highest',
      '  gathered units            5.0 MB  in the dtype of forward and backward',
      '                                     within its host                to other hosts',
      '  all-gather                      0 B         8.0 MB            0 B         5.0 MB',
      'Each device has to hold 11.0 MB, and what its driver, NCCL and GEMM library take.',
    ])
      expect(lines).toContain(line);
    expect(lines.at(-1)).toMatch(/^The 4 ranks of a host would take 12\.0 MB of host memory, /);
  });
});
