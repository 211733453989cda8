// applyLora and the files of adapters: which layers are adapted and how, and what is refused, by name.
import { copyFile, cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { parsePeftConfig } from '../../src/adapt/config.ts';
import { loadAdapter, saveAdapter } from '../../src/adapt/files.ts';
import { applyLora, disableAdapter, setAdapter } from '../../src/adapt/lora.ts';
import { mergeAdapter, unmergeAdapter } from '../../src/adapt/merge.ts';
import { AutoModelForCausalLM } from '../../src/models/auto.ts';
import type { CausalLM } from '../../src/models/causal_lm.ts';
import { AutoConfig } from '../../src/models/config.ts';
import { initEmptyWeights } from '../../src/nn/init_empty_weights.ts';
import { Linear } from '../../src/nn/layers.ts';
import { adaptersOf, layersOf } from '../../src/nn/lora.ts';
import { noGrad } from '../../src/tensor/grad_mode.ts';
import { manualSeed } from '../../src/tensor/random.ts';
import { caseDir } from '../reference/cases.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'rankzero-lora-'));
});
afterAll(() => rm(folder, { recursive: true }));

const load = (name = 'llama'): Promise<CausalLM> => AutoModelForCausalLM.fromPretrained(caseDir(name));
const fresh = async (name: string): Promise<CausalLM> =>
  initEmptyWeights(() => AutoModelForCausalLM.fromConfig(AutoConfigs.get(name)!));
const AutoConfigs = new Map<string, Awaited<ReturnType<typeof AutoConfig.fromPretrained>>>();
beforeAll(async () => {
  for (const name of ['llama', 'mixtral', 'gpt-neox', 'llama3-rope-tied', 'llama-bias'])
    AutoConfigs.set(name, await AutoConfig.fromPretrained(caseDir(name)));
});
const adaptedPaths = (model: CausalLM): string[] => [...adaptersOf(model)!.byName.get('default')!.layers.keys()];
const trained = (model: CausalLM): string[] =>
  [...model.namedParameters()].filter(([, { requiresGrad }]) => requiresGrad).map(([name]) => name);
const logits = (model: CausalLM): Float32Array =>
  noGrad(() => model.forward({ inputIds: [[3, 4, 5, 6]] })).logits.dataSync() as Float32Array;

describe('targets', () => {
  it("are PEFT's for the family unless others are named", async () => {
    const model = applyLora(await fresh('llama'));
    expect(new Set(adaptedPaths(model).map((path) => path.split('.').at(-1)))).toEqual(new Set(['q_proj', 'v_proj']));
    expect(adaptedPaths(applyLora(await fresh('gpt-neox')))).toContain('gpt_neox.layers.0.attention.query_key_value');
  });

  it('all-linear is every linear layer but the head, and nothing that is run together with others', async () => {
    const llama = applyLora(await fresh('llama'), { targetModules: 'all-linear' });
    const linears = [...llama.namedModules()].filter(([, module]) => module instanceof Linear).map(([path]) => path);
    expect(adaptedPaths(llama)).toEqual(linears.filter((path) => path !== 'lm_head'));
    const mixtral = applyLora(await fresh('mixtral'), { targetModules: 'all-linear' });
    expect(adaptedPaths(mixtral).every((path) => path.includes('self_attn'))).toBe(true);
  });

  it('are narrowed by layers, exclusions and modules to save', async () => {
    const some = applyLora(await fresh('llama'), { targetModules: ['q_proj', 'up_proj'], layers: 1 });
    expect(adaptedPaths(some)).toEqual(['model.layers.1.self_attn.q_proj', 'model.layers.1.mlp.up_proj']);
    const others = applyLora(await fresh('llama'), {
      targetModules: 'all-linear',
      excludeModules: String.raw`.*\.mlp\..*`,
    });
    expect(adaptedPaths(others).some((path) => path.includes('mlp'))).toBe(false);
    const saved = applyLora(await fresh('llama'), {
      targetModules: ['q_proj', 'o_proj'],
      modulesToSave: ['o_proj', 'norm'],
    });
    expect(adaptedPaths(saved).every((path) => path.endsWith('q_proj'))).toBe(true);
    expect(trained(saved)).toEqual(
      expect.arrayContaining(['model.norm.weight', 'model.layers.0.self_attn.o_proj.weight']),
    );
  });

  it('have ranks and factors by the first pattern that matches', async () => {
    const model = applyLora(await fresh('llama'), {
      r: 4,
      alpha: 6,
      targetModules: ['q_proj', 'v_proj'],
      rankPattern: { 'layers.1.self_attn.q_proj': 2, q_proj: 8 },
      alphaPattern: { v_proj: 10 },
      useRslora: true,
    });
    const { layers } = adaptersOf(model)!.byName.get('default')!;
    const of = (path: string) => layers.get(`model.layers.${path}`)!;
    expect([of('0.self_attn.q_proj').r, of('1.self_attn.q_proj').r, of('0.self_attn.v_proj').r]).toEqual([8, 2, 4]);
    expect(of('1.self_attn.q_proj').factor).toBe(6 / Math.sqrt(2));
    expect(of('0.self_attn.v_proj').factor).toBe(10 / 2);
  });
});

describe('a fresh adapter', () => {
  it.each([{ targetModules: 'all-linear' }, { useDora: true }, { initLoraWeights: 'gaussian' as const, r: 3 }])(
    '%o changes nothing until it is trained',
    async (options) => {
      const model = await load();
      const before = logits(model);
      applyLora(model, options);
      for (const [i, value] of logits(model).entries()) expect(Math.abs(value - before[i]!)).toBeLessThan(1e-5);
      expect(trained(model).every((name) => name.includes('.lora_'))).toBe(true);
      expect([...model.namedParameters()].filter(([, p]) => p.requiresGrad && p.dtype !== 'float32')).toEqual([]);
    },
  );

  it('is drawn from the seed and its name', async () => {
    const draw = async (): Promise<Float32Array> => {
      manualSeed(7);
      const [, , { a }] = [...layersOf(applyLora(await load()), 'default')][0]!;
      return a.dataSync() as Float32Array;
    };
    const first = await draw();
    expect(await draw()).toEqual(first);
    const bound = 1 / Math.sqrt(AutoConfigs.get('llama')!.hiddenSize);
    expect(Math.max(...first.map(Math.abs))).toBeLessThanOrEqual(bound);
    expect(Math.max(...first.map(Math.abs))).toBeGreaterThan(0.9 * bound);
  });

  it('unties a head that is trained whole', async () => {
    const model = await load('llama3-rope-tied');
    const before = logits(model);
    applyLora(model, { modulesToSave: ['lm_head'] });
    expect(model.isTied).toBe(false);
    expect(logits(model)).toEqual(before);
    expect(trained(model)).toContain('lm_head.weight');
    expect(model.inputEmbedding.weight.requiresGrad).toBe(false);
  });

  it('trains the biases that are asked for, and saves them as PEFT does', async () => {
    const model = applyLora(await load('llama-bias'), { bias: 'lora_only' });
    const biases = trained(model).filter((name) => name.endsWith('.bias'));
    expect(biases.length).toBeGreaterThan(0);
    expect(biases.every((name) => /\.(q|v)_proj\.bias$/.test(name))).toBe(true);
    expect(
      trained(applyLora(await load('llama-bias'), { bias: 'all' })).filter((name) => name.endsWith('.bias')).length,
    ).toBeGreaterThan(biases.length);
    await saveAdapter(model, join(folder, 'biases'));
    const text = await readFile(join(folder, 'biases', 'adapter_model.safetensors'), 'latin1');
    expect(text).toContain('base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias');
    await loadAdapter(await load('llama-bias'), join(folder, 'biases'));
  });
});

describe('several adapters', () => {
  it('of which one acts and is trained', async () => {
    const model = await load('lora-llama');
    const base = logits(model);
    await loadAdapter(model, join(caseDir('lora-llama'), 'adapter'), { name: 'theirs' });
    const theirs = logits(model);
    applyLora(model, { r: 2 }, 'own');
    expect(logits(model)).toEqual(base);
    expect(trained(model).every((name) => name.includes('.own.'))).toBe(true);
    setAdapter(model, 'theirs');
    expect(logits(model)).toEqual(theirs);
    expect(trained(model).every((name) => name.includes('.theirs.'))).toBe(true);
    await disableAdapter(model, async () => {
      await Promise.resolve();
      expect(logits(model)).toEqual(base);
    });
    expect(() =>
      disableAdapter(model, () => {
        throw new Error('inside');
      }),
    ).toThrow('inside');
    expect(logits(model)).toEqual(theirs);
    expect(() => setAdapter(model, 'none')).toThrow('no adapter "none"; it has theirs, own');
    expect(() => applyLora(model, {}, 'own')).toThrow('has an adapter "own" already');
    expect(() => applyLora(model, { modulesToSave: ['norm'] }, 'third')).toThrow('beside others');
    mergeAdapter(model);
    expect(() => disableAdapter(model, () => 0)).toThrow('disableAdapter: the adapter "theirs" is merged');
    // Each would leave one in the weights while another acts, or is taken out.
    expect(() => setAdapter(model, 'own')).toThrow('setAdapter: the adapter "theirs" is merged');
    expect(() => applyLora(model, {}, 'fourth')).toThrow('applyLora: the adapter "theirs" is merged');
    unmergeAdapter(model);
    setAdapter(model, 'own');
    for (const [i, value] of logits(model).entries()) expect(Math.abs(value - base[i]!)).toBeLessThan(1e-5);
  });
});

describe('errors name', () => {
  const cases: [string, string, object, RegExp][] = [
    [
      'layers that do not exist',
      'llama',
      { targetModules: ['q_proj', 'q_porj'] },
      /no linear layer "q_porj"; did you mean q_proj\?/,
    ],
    ['patterns that leave none', 'llama', { targetModules: '.*nothing' }, /leave no linear layer/],
    ['regular expressions that are none', 'llama', { targetModules: '(' }, /targetModules: Invalid regular expression/],
    ['experts', 'mixtral', { targetModules: ['w1'] }, /experts\.0\.w1 is run by model\.layers\.0\.block_sparse_moe/],
    ['the head', 'llama', { targetModules: ['lm_head'] }, /lm_head is the output head.*modulesToSave/],
    [
      'modules to save that do not exist',
      'llama',
      { modulesToSave: ['lm_haed'] },
      /modulesToSave.*did you mean lm_head\?/,
    ],
    [
      'a tied embedding',
      'llama3-rope-tied',
      { modulesToSave: ['embed_tokens'] },
      /embed_tokens is tied to the output head/,
    ],
    ['ranks', 'llama', { r: 0 }, /r: got 0, wanted a whole number of at least 1/],
    ['patterns of ranks', 'llama', { rankPattern: { q_proj: 1.5 } }, /rankPattern: got an object, wanted a rank/],
    [
      'patterns that match nothing',
      'llama',
      { alphaPattern: { up_proj: 2 } },
      /alphaPattern: no adapted layer matches "up_proj"/,
    ],
    ['options that do not exist', 'llama', { rank: 8 }, /no option rank; there are r, alpha/],
    [
      'several at once',
      'llama',
      { r: -1, dropout: 1 },
      /r: got -1.*; dropout: got 1, wanted a number from 0 to below 1/,
    ],
    ['biases that there are not', 'llama', { bias: 'all' }, /bias is all, but there are no such biases/],
    [
      'layers beside a regular expression',
      'llama',
      { targetModules: '.*q_proj', layers: [0] },
      /layers narrow a list of names/,
    ],
    [
      'DoRA with drawn B',
      'llama',
      { useDora: true, initLoraWeights: false },
      /useDora measures the weight while B is zero/,
    ],
  ];
  it.each(cases)('%s', async (_, name, options, message) => {
    const model = await fresh(name);
    expect(() => applyLora(model, options)).toThrow(message);
    expect(adaptersOf(model)).toBeUndefined();
    expect(trained(model).length).toBeGreaterThan(0);
  });

  it('what a model without an adapter lacks', async () => {
    await expect(saveAdapter(await fresh('llama'), join(folder, 'no'))).rejects.toThrow(
      'the model has no adapter; it has none',
    );
  });
});

describe('files', () => {
  const theirs = (): string => join(caseDir('lora-llama'), 'adapter');
  const changed = async (name: string, change: (json: Record<string, unknown>) => unknown): Promise<string> => {
    const dir = join(folder, name);
    await cp(theirs(), dir, { recursive: true });
    const json = JSON.parse(await readFile(join(dir, 'adapter_config.json'), 'utf8'));
    change(json);
    await writeFile(join(dir, 'adapter_config.json'), JSON.stringify(json));
    return dir;
  };

  it('are refused where a key would change what the adapter computes', async () => {
    const dir = await changed('keys', (json) =>
      Object.assign(json, { lora_bias: true, layer_replication: [[0, 2]], new_key: 3 }),
    );
    await expect(loadAdapter(await load('lora-llama'), dir)).rejects.toThrow(
      /adapter_config\.json: .*layer_replication is .*not supported.*lora_bias is true.*new_key is 3/,
    );
  });

  it('may have keys that say nothing, and older ones that lack some', () => {
    const config = parsePeftConfig(
      { peft_type: 'LORA', r: 2, target_modules: ['q_proj'], later: null, init_lora_weights: 'pissa_niter_4' },
      'file',
    );
    expect(config).toMatchObject({ r: 2, alpha: 8, targetModules: ['q_proj'], initLoraWeights: true });
    expect(() => parsePeftConfig({ peft_type: 'IA3' }, 'file')).toThrow(
      'file: peft_type is "IA3"; only "LORA" is supported',
    );
    expect(() => parsePeftConfig({ peft_type: 'LORA', r: 'four' }, 'file')).toThrow(
      'r is "four", wanted a whole number',
    );
  });

  it('of another base or another rank are refused with their names', async () => {
    await expect(loadAdapter(await load('gpt-neox'), theirs())).rejects.toThrow(
      /does not fit the model: .*no linear layer "down_proj"/,
    );
    const model = await load('lora-llama');
    const base = logits(model);
    const rank = await changed('rank', (json) => Object.assign(json, { r: 5 }));
    await expect(loadAdapter(model, rank)).rejects.toThrow(
      /wrong shape: .*q_proj\.lora_A\.weight is \[4,48\] but \[5,48\] is wanted/,
    );
    expect(logits(model)).toEqual(base);
    expect(() => disableAdapter(model, () => 0)).toThrow('it has none');
    await loadAdapter(model, theirs());
    const more = await changed('more', (json) => Object.assign(json, { target_modules: ['q_proj'] }));
    await expect(loadAdapter(await load('lora-llama'), more)).rejects.toThrow(
      /unexpected: .*down_proj\.lora_A\.weight.* more/,
    );
    const dora = await changed('dora', (json) => Object.assign(json, { use_dora: true }));
    await expect(loadAdapter(await load('lora-llama'), dora)).rejects.toThrow(/missing: .*lora_magnitude_vector/);
  });

  it('that are missing are named', async () => {
    await expect(loadAdapter(await load('lora-llama'), folder)).rejects.toThrow(
      'no adapter_config.json: this is not the folder of an adapter',
    );
    const bin = await changed('bin', () => {});
    await copyFile(join(bin, 'adapter_config.json'), join(bin, 'adapter_model.bin'));
    await rm(join(bin, 'adapter_model.safetensors'));
    await expect(loadAdapter(await load('lora-llama'), bin)).rejects.toThrow(
      /no adapter_model\.safetensors; adapter_model\.bin is pickled/,
    );
  });

  it('are not read on meta', async () => {
    const model = await loadAdapter(
      initEmptyWeights(() => AutoModelForCausalLM.fromConfig(AutoConfigs.get('llama')!)),
      await changed('meta', () => {}).then(async (dir) => {
        await rm(join(dir, 'adapter_model.safetensors'));
        return dir;
      }),
    );
    expect([...model.parameters()].every(({ device }) => device === 'meta')).toBe(true);
  });
});
