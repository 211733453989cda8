// init: what it reads, what it refuses, and the mesh of a world of one.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it, vi } from 'vitest';
import { checkDegrees } from '../../src/distributed/degrees.ts';
import { dist } from '../../src/distributed/index.ts';
import { init, parseInitConfig, state } from '../../src/distributed/state.ts';
import { AutoModelForCausalLM, registerModel } from '../../src/models/auto.ts';
import { AutoConfig } from '../../src/models/config.ts';
import { LlamaForCausalLM } from '../../src/models/llama.ts';
import type { LlamaConfig } from '../../src/models/llama-config.ts';
import { initEmptyWeights } from '../../src/nn/init_empty_weights.ts';
import { Linear } from '../../src/nn/layers.ts';
import { FullyShardedDataParallel as FSDP } from '../../src/parallel/fsdp/fsdp.ts';
import { transform } from '../../src/parallel/tensor/index.ts';
import { caseDir } from '../reference/cases.ts';

const dir = mkdtempSync(join(tmpdir(), 'rankzero-state-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

describe('a config', () => {
  const wanted = { tensorParallelDegree: 4, hybridShardDegree: 2, randomSeed: 7 };
  const snake = { tensor_parallel_degree: 4, hybrid_shard_degree: 2, random_seed: 7 };

  it('is an object, JSON text or the path of a file, in either spelling', () => {
    const path = join(dir, 'init.json');
    writeFileSync(path, JSON.stringify(snake));
    for (const config of [wanted, snake, JSON.stringify(wanted), ` ${JSON.stringify(snake)}`, path])
      expect(parseInitConfig(config)).toEqual(wanted);
  });

  it('may say what is the default anyway', () => {
    const config = {
      context_parallel_degree: 1,
      expert_parallel_degree: 1,
      sm_activation_offloading: false,
      activation_loading_horizon: 4,
      allow_empty_shards: true,
      fsdp_cache_flush_warnings: true,
    };
    expect(Object.keys(parseInitConfig(config))).toHaveLength(6);
  });

  it.each([
    [
      { tensorParalelDegree: 2 },
      'init: unknown key tensorParalelDegree; known are tensorParallelDegree, hybridShardDegree',
    ],
    [{ tensor_parallel_degree: 0 }, 'init: tensor_parallel_degree must be a whole number from 1, got 0'],
    [{ hybridShardDegree: '2' }, 'init: hybridShardDegree must be a whole number from 0, got "2"'],
    [{ tensorParallelDegree: 2, tensor_parallel_degree: 2 }, 'tensor_parallel_degree is given in both spellings'],
    [{ contextParallelDegree: 2 }, 'init: contextParallelDegree 2 is not built yet; only 1 is'],
    [{ expertParallelDegree: 2 }, 'init: expertParallelDegree 2 is not built yet; only 1 is'],
    [
      { expertParallelDegree: 2, tensorParallelDegree: 2 },
      'expert parallelism (2) cannot be combined with tensor parallelism (2)',
    ],
    [{ smActivationOffloading: 1 }, 'smActivationOffloading must be true or false, got 1'],
    ['{"tensorParallelDegree": }', 'init'],
    ['/nowhere/init.json', 'init: cannot read /nowhere/init.json: ENOENT'],
    [[1], 'the config must be an object, got [1]'],
  ])('refuses %j', (config, message) => {
    expect(() => parseInitConfig(config as never)).toThrow(message);
  });
});

it('names the nearest degrees that fit the world', () => {
  expect(() => checkDegrees(8, 3, 0)).toThrow(
    'the tensor-parallel degree 3 does not divide the 8 ranks; the nearest that do: 2 and 4',
  );
  expect(() => checkDegrees(12, 2, 4)).toThrow(
    'the shard degree 4 does not divide the 6 data-parallel ranks (12 ranks, tensor-parallel degree 2); the nearest that do: 3 and 6',
  );
  checkDegrees(8, 2, 4);
});

describe('a world of one', () => {
  it('says what has no effect here, and goes on', async () => {
    await dist.initProcessGroup();
    const warn = vi.spyOn(console, 'warn').mockImplementation(() => {});
    init({ sm_activation_offloading: true, activation_loading_horizon: 2, allow_empty_shards: true });
    expect(warn.mock.calls.flat()).toEqual([
      'rankzero: init: allowEmptyShards has no effect here',
      'rankzero: init: smActivationOffloading has no effect: CPU ranks have nowhere to offload to',
    ]);
    warn.mockClear();
    init({ sm_activation_offloading: false });
    expect(warn).not.toHaveBeenCalled();
    warn.mockRestore();
    dist.destroyProcessGroup();
  });

  it('wants the process group first, then init, then transform', async () => {
    expect(() => init({})).toThrow('call await dist.initProcessGroup() first');
    await dist.initProcessGroup();
    const model = await AutoModelForCausalLM.fromPretrained(caseDir('llama'));
    expect(() => transform(model)).toThrow('call init({ tensorParallelDegree }) first');
    expect(state.isInitialized).toBe(false);
    expect(() => init({ tensorParallelDegree: 2 })).toThrow('does not divide the 1 ranks');
    init({ tensorParallelDegree: 1, randomSeed: 3 });
    init({ tensorParallelDegree: 1 }); // the same again
    expect(() => init({ hybridShardDegree: 1 })).toThrow('init was called before with other degrees');
    const { tpRank, tpSize, dpRank, dpSize, shardSize, replicateSize } = state;
    expect({ tpRank, tpSize, dpRank, dpSize, shardSize, replicateSize }).toEqual({
      tpRank: 0,
      tpSize: 1,
      dpRank: 0,
      dpSize: 1,
      shardSize: 1,
      replicateSize: 1,
    });
    expect(state.deviceMesh!.dimNames).toEqual(['replicate', 'shard', 'context', 'tensor']);

    expect(() => transform(new Linear(2, 2))).toThrow(
      /transform: Linear is not a model of a supported family; supported: .*llama/,
    );
    registerModel('planless', { create: (config, dtype) => new LlamaForCausalLM(config as LlamaConfig, dtype) });
    const planless = await AutoModelForCausalLM.fromPretrained(caseDir('llama'));
    Object.assign(planless.config, { modelType: 'planless' });
    expect(() => transform(planless)).toThrow(/model_type "planless" has no parallel plan; supported: .*llama/);
    const same = transform(model, { loadStateDictFromRank0: true });
    expect(same).not.toBe(model);
    expect([...same.namedParameters()].map(([name]) => name)).toEqual(
      [...model.namedParameters()].map(([name]) => name),
    );
    expect(() => new FSDP(same)).toThrow('wrap with syncModuleStates: true');
    const config = await AutoConfig.fromPretrained(caseDir('llama'));
    const empty = initEmptyWeights(() => AutoModelForCausalLM.fromConfig(config));
    expect(() => transform(empty, { loadStateDictFromRank0: true })).toThrow(
      'with loadStateDictFromRank0 rank 0 must hold every weight, but its model.embed_tokens.weight is on meta',
    );
    expect([...transform(empty).parameters()].every((parameter) => parameter.device === 'meta')).toBe(true);
  });
});
