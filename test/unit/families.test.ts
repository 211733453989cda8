// What every family must do beside its numbers (test/reference): fresh weights, plans, units, files of older versions.
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { loadSafetensors, saveSafetensors } from '../../src/checkpoint/tensors.ts';
import {
  AutoConfig,
  AutoModelForCausalLM,
  CausalLM,
  CausalLMHead,
  Embedding,
  type FloatDType,
  LayerNorm,
  Linear,
  type ModelConfig,
  manualSeed,
  RMSNorm,
  readBaseConfig,
  registerConfig,
  registerModel,
  Tensor,
  transformerAutoWrapPolicy,
} from '../../src/index.ts';
import { familyOf } from '../../src/models/auto.ts';
import { rulesOf } from '../../src/parallel/tensor/placements.ts';
import { caseDir } from '../reference/cases.ts';
import { familyCases } from '../reference/family.ts';

const configOf = (name: string): object => JSON.parse(readFileSync(join(caseDir(name), 'config.json'), 'utf8'));

function fresh(name: string, json: object = {}): CausalLM {
  manualSeed(11);
  return AutoModelForCausalLM.fromConfig(AutoConfig.fromObject({ ...configOf(name), ...json }));
}

const floats = (tensor: Tensor): Float32Array => tensor.dataSync() as Float32Array;

describe.each(familyCases)('%s', (name) => {
  it('starts as Transformers initialises it', () => {
    const model = fresh(name, { initializer_range: 0.05 });
    const counts = { matrices: 0, norms: 0 };
    const paddingIdx = name.startsWith('gpt-neox') ? undefined : 2;
    for (const [path, module] of model.namedModules()) {
      if (module instanceof LayerNorm || module instanceof RMSNorm) {
        expect(new Set(floats(module.weight)), path).toEqual(new Set([1]));
        if (module instanceof LayerNorm) expect(new Set(floats(module.bias)), path).toEqual(new Set([0]));
        counts.norms++;
      }
      if (!(module instanceof Linear || module instanceof Embedding)) continue;
      const data = floats(module.weight);
      const sum = data.reduce((total, x) => total + x, 0);
      const squares = data.reduce((total, x) => total + x * x, 0);
      // Within five standard errors of N(0, 0.05).
      expect(Math.abs(sum / data.length), path).toBeLessThan((5 * 0.05) / Math.sqrt(data.length));
      const isEmbedding = module instanceof Embedding || (model.isTied && module === model.outputHead);
      const drawn = data.length - (isEmbedding && paddingIdx !== undefined ? module.weight.size(1) : 0);
      expect(Math.abs(Math.sqrt(squares / drawn) / 0.05 - 1), path).toBeLessThan(5 / Math.sqrt(2 * drawn));
      if (module instanceof Linear && module.bias) expect(new Set(floats(module.bias)), path).toEqual(new Set([0]));
      if (module instanceof Embedding) {
        const zeroRows = Array.from({ length: module.weight.size(0) }, (_, row) => row).filter((row) =>
          data.subarray(row * module.weight.size(1), (row + 1) * module.weight.size(1)).every((x) => x === 0),
        );
        expect(zeroRows).toEqual(paddingIdx === undefined ? [] : [paddingIdx]);
      }
      counts.matrices++;
    }
    expect(counts.matrices).toBeGreaterThanOrEqual(10);
    expect(counts.norms).toBeGreaterThanOrEqual(5);
  });

  it('has a plan that names every module with parameters, and none that is not there', () => {
    const model = fresh(name);
    const plan = familyOf(model.config).parallelPlan!;
    const named = [...rulesOf(model, plan).keys()];
    for (const path of Object.keys(plan)) {
      const pattern = new RegExp(`^${path.replaceAll('.', '\\.').replaceAll('*', '[^.]+')}$`);
      expect(named.filter((candidate) => pattern.test(candidate)).length, path).toBeGreaterThan(0);
    }
  });

  it('has its decoder layers as units', () => {
    const model = fresh(name);
    const units = transformerAutoWrapPolicy()(model);
    expect(units.filter((unit) => unit instanceof model.decoderLayerClass).length).toBe(2);
    expect(units.length).toBe(model.isTied ? 2 : 4);
  });
});

describe('files of older versions', () => {
  let dir: string;
  beforeEach(() => {
    dir = mkdtempSync(join(tmpdir(), 'rankzero-families-'));
  });
  afterEach(() => rmSync(dir, { recursive: true, force: true }));

  async function rewritten(name: string, change: (tensors: Map<string, Tensor>) => void): Promise<string> {
    cpSync(caseDir(name), dir, { recursive: true });
    const tensors = await loadSafetensors(join(dir, 'model.safetensors'));
    change(tensors);
    await saveSafetensors(join(dir, 'model.safetensors'), tensors);
    return dir;
  }

  const logits = async (from: string): Promise<Float32Array> =>
    floats((await AutoModelForCausalLM.fromPretrained(from)).forward({ inputIds: [[3, 4, 5, 6]] }).logits);

  it('of GPT-NeoX hold masks and rotary tables that are ignored, and nothing else is', async () => {
    const layer = 'gpt_neox.layers.1.attention';
    const old = await rewritten('gpt-neox', (tensors) => {
      tensors.set(`${layer}.bias`, Tensor.from([1, 0], [1, 1, 1, 2], { dtype: 'uint8' }));
      tensors.set(`${layer}.masked_bias`, Tensor.from([-1e9], []));
      tensors.set(`${layer}.rotary_emb.inv_freq`, Tensor.from([1, 0.1]));
    });
    expect(await logits(old)).toEqual(await logits(caseDir('gpt-neox')));
    await rewritten('gpt-neox', (tensors) => tensors.set(`${layer}.dense.scale`, Tensor.from([1])));
    await expect(logits(dir)).rejects.toThrow(/unexpected: gpt_neox\.layers\.1\.attention\.dense\.scale$/);
    await rewritten('gpt-neox', (tensors) => tensors.delete(`${layer}.dense.bias`));
    await expect(logits(dir)).rejects.toThrow(/missing: gpt_neox\.layers\.1\.attention\.dense\.bias$/);
  });

  it.each(['mistral-window', 'qwen2', 'qwen3'])('of %s hold rotary tables that are ignored', async (name) => {
    const old = await rewritten(name, (tensors) =>
      tensors.set('model.layers.0.self_attn.rotary_emb.inv_freq', Tensor.from([1, 0.1])),
    );
    expect(await logits(old)).toEqual(await logits(caseDir(name)));
  });

  it('of GPT-NeoX give the same model as newer ones', async () => {
    cpSync(caseDir('gpt-neox'), dir, { recursive: true });
    const { rope_parameters, dtype, ...rest } = configOf('gpt-neox') as Record<string, unknown>;
    const old = { ...rest, rotary_emb_base: 10_000, rotary_pct: 0.25, torch_dtype: dtype };
    expect(rope_parameters).toBeDefined();
    writeFileSync(join(dir, 'config.json'), JSON.stringify(old));
    expect(await logits(dir)).toEqual(await logits(caseDir('gpt-neox')));
  });
});

it('GPT-NeoX takes the three names of GELU by tanh for one function, near the exact one', () => {
  const of = (hidden_act: string): Float32Array =>
    floats(fresh('gpt-neox', { hidden_act, initializer_range: 0.3 }).forward({ inputIds: [[3, 4, 5]] }).logits);
  const [exact, ...others] = ['gelu', 'gelu_new', 'gelu_fast', 'gelu_pytorch_tanh'].map(of);
  for (const other of others) expect(other).toEqual(others[0]);
  const difference = Math.max(...exact!.map((x, i) => Math.abs(x - others[0]![i]!)));
  expect(difference).toBeGreaterThan(1e-6);
  expect(difference).toBeLessThan(0.05);
});

/** The least that a family of a program's own must say. */
class Bigram extends CausalLM {
  embedding: Embedding;
  head: CausalLMHead;
  readonly decoderLayerClass: typeof Embedding = Embedding;
  readonly numLayers = 0;

  constructor(config: ModelConfig, dtype: FloatDType) {
    super(config);
    this.embedding = new Embedding(config.vocabSize, config.hiddenSize, { dtype });
    this.head = new CausalLMHead(config.hiddenSize, config.vocabSize, { dtype });
  }

  get inputEmbedding(): Embedding {
    return this.embedding;
  }

  get outputHead(): CausalLMHead {
    return this.head;
  }

  hidden(ids: Tensor): Tensor {
    return this.embedding.forward(ids);
  }
}

describe('a family of a program', () => {
  const defaults = {
    vocabSize: 11,
    hiddenSize: 8,
    numHiddenLayers: 1,
    numAttentionHeads: 1,
    maxPositionEmbeddings: 16,
    bosTokenId: null,
    eosTokenId: null,
    tieWordEmbeddings: false,
  };
  beforeEach(() => {
    registerConfig('bigram', (reader) => readBaseConfig(reader, defaults));
    registerModel('bigram', { create: (config, dtype) => new Bigram(config, dtype) });
  });

  it('gets names and ties, trains, and comes back from its files', async () => {
    for (const tie_word_embeddings of [false, true]) {
      const model = AutoModelForCausalLM.fromConfig(
        AutoConfig.fromObject({ model_type: 'bigram', tie_word_embeddings }),
      );
      const names = ['embedding.weight', ...(tie_word_embeddings ? [] : ['head.weight'])];
      expect([...model.parameters()].map((parameter) => parameter.name)).toEqual(names);
      const input = { inputIds: [[1, 2, 3]], labels: [[1, 2, 3]] };
      const { loss } = model.forward(input);
      loss.backward();
      for (const parameter of model.parameters()) expect(Math.hypot(...floats(parameter.grad!))).toBeGreaterThan(0);
      const dir = mkdtempSync(join(tmpdir(), 'rankzero-bigram-'));
      await model.savePretrained(dir);
      const again = await AutoModelForCausalLM.fromPretrained(dir);
      expect(again.forward(input).loss.item()).toBe(loss.item());
      rmSync(dir, { recursive: true });
    }
  });

  it('draws different weights for parameters of one shape', () => {
    const model = AutoModelForCausalLM.fromConfig(AutoConfig.fromObject({ model_type: 'bigram' })) as Bigram;
    expect(floats(model.embedding.weight)).not.toEqual(floats(model.head.weight));
  });
});

it('an unsupported model_type names the supported ones', () => {
  expect(() => AutoConfig.fromObject({ model_type: 'bert' })).toThrow(
    /^config: model_type "bert" is not supported; supported are .*gpt_neox, llama, mistral, mixtral, qwen2, qwen3$/,
  );
  const config = { ...AutoConfig.fromObject(configOf('llama')), modelType: 'bert' };
  expect(() => AutoModelForCausalLM.fromConfig(config)).toThrow(
    /^model_type "bert" is not supported; supported: .*gpt_neox, llama, mistral, mixtral, qwen2, qwen3$/,
  );
});
