// config.json in its old and new forms, defaults, and errors that name file and key.
import { mkdtemp, readFile, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test, vi } from 'vitest';
import { parseJson } from '../../src/core/json.ts';
import { AutoConfig, configText, configToJson, type ModelConfig, registerConfig } from '../../src/models/config.ts';
import { windowOf } from '../../src/models/decoder-config.ts';
import type { GPTNeoXConfig } from '../../src/models/gpt-neox-config.ts';
import type { LlamaConfig } from '../../src/models/llama-config.ts';
import type { MistralConfig } from '../../src/models/mistral-config.ts';
import type { MixtralConfig } from '../../src/models/mixtral-config.ts';
import type { QwenConfig } from '../../src/models/qwen-config.ts';

const llama = (json: object) => AutoConfig.fromObject({ model_type: 'llama', ...json }, 'config.json') as LlamaConfig;

test('reads the example and reference configs', async () => {
  const moby = (await AutoConfig.fromPretrained('examples/moby-llama')) as LlamaConfig;
  expect(moby).toMatchObject({
    modelType: 'llama',
    dtype: 'bfloat16',
    vocabSize: 2048,
    hiddenSize: 192,
    intermediateSize: 512,
    numHiddenLayers: 6,
    numAttentionHeads: 6,
    numKeyValueHeads: 2,
    headDim: 32,
    hiddenAct: 'silu',
    maxPositionEmbeddings: 512,
    rmsNormEps: 1e-6,
    tieWordEmbeddings: false,
    attentionBias: false,
    mlpBias: false,
    bosTokenId: 0,
    eosTokenId: 0,
    padTokenId: 1,
    ropeParameters: { ropeType: 'default', ropeTheta: 10_000, partialRotaryFactor: 1 },
  });
  const tied = (await AutoConfig.fromPretrained('test/reference/llama3-rope-tied')) as LlamaConfig;
  expect(tied.tieWordEmbeddings).toBe(true);
  expect(tied.ropeParameters).toEqual({
    ropeType: 'llama3',
    ropeTheta: 500_000,
    partialRotaryFactor: 1,
    factor: 8,
    lowFreqFactor: 1,
    highFreqFactor: 4,
    originalMaxPositionEmbeddings: 32,
  });
});

test('absent keys have the defaults of LlamaConfig', () => {
  expect(llama({})).toMatchObject({
    dtype: 'float32',
    vocabSize: 32_000,
    hiddenSize: 4096,
    intermediateSize: 11_008,
    numHiddenLayers: 32,
    numAttentionHeads: 32,
    numKeyValueHeads: 32,
    headDim: 128,
    maxPositionEmbeddings: 2048,
    initializerRange: 0.02,
    rmsNormEps: 1e-6,
    bosTokenId: 1,
    eosTokenId: 2,
    padTokenId: null,
    tieWordEmbeddings: false,
  });
  expect(llama({ num_attention_heads: 8, num_key_value_heads: null, hidden_size: 64 })).toMatchObject({
    numKeyValueHeads: 8,
    headDim: 8,
  });
  expect(llama({ eos_token_id: [2, 3], bos_token_id: null, pad_token_id: -1 })).toMatchObject({
    eosTokenId: [2, 3],
    bosTokenId: null,
    padTokenId: null,
  });
});

test('old and new forms of dtype', () => {
  expect(llama({ torch_dtype: 'bfloat16' }).dtype).toBe('bfloat16');
  expect(llama({ dtype: 'torch.float16' }).dtype).toBe('float16');
  expect(() => llama({ torch_dtype: 'float64' })).toThrow(/config\.json: torch_dtype must be .*, got "float64"/);
  expect(() => llama({ dtype: 'int64' })).toThrow(/dtype must be/);
});

describe('rope', () => {
  const llama3 = { factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 8192 };
  const want = {
    ropeType: 'llama3',
    ropeTheta: 5e5,
    partialRotaryFactor: 1,
    factor: 8,
    lowFreqFactor: 1,
    highFreqFactor: 4,
    originalMaxPositionEmbeddings: 8192,
  };

  test('old and new forms give the same', () => {
    expect(llama({ rope_theta: 5e5, rope_scaling: { rope_type: 'llama3', ...llama3 } }).ropeParameters).toEqual(want);
    expect(llama({ rope_parameters: { rope_theta: 5e5, rope_type: 'llama3', ...llama3 } }).ropeParameters).toEqual(
      want,
    );
    expect(llama({ rope_theta: 5e5, rope_scaling: { type: 'linear', factor: 2 } }).ropeParameters).toEqual({
      ropeType: 'linear',
      ropeTheta: 5e5,
      partialRotaryFactor: 1,
      factor: 2,
    });
    expect(llama({ rope_theta: 5e5, rope_scaling: null }).ropeParameters).toEqual({
      ropeType: 'default',
      ropeTheta: 5e5,
      partialRotaryFactor: 1,
    });
    expect(llama({}).ropeParameters.ropeTheta).toBe(10_000);
  });

  test.each(['dynamic', 'yarn', 'longrope', '__proto__'])('%s is not supported', (type) => {
    expect(() => llama({ rope_scaling: { rope_type: type, factor: 2 } })).toThrow(
      `config.json: rope type "${type}" is not supported; supported are "default", "linear", "llama3"`,
    );
  });

  test('missing and wrong keys are named', () => {
    expect(() => llama({ rope_scaling: { rope_type: 'linear' } })).toThrow(
      /rope_scaling\.factor must be a number above 0, got nothing/,
    );
    expect(() => llama({ rope_parameters: { rope_type: 'llama3', ...llama3, high_freq_factor: 1 } })).toThrow(
      /rope_parameters\.high_freq_factor must be above low_freq_factor \(1\), got 1/,
    );
    expect(() => llama({ rope_scaling: 'linear' })).toThrow(/rope_scaling must be an object/);
  });
});

test.each([
  [{ hidden_size: '4096' }, /hidden_size must be a whole number from 1, got "4096"/],
  [{ hidden_size: 0 }, /hidden_size must be/],
  [{ num_hidden_layers: 1.5 }, /num_hidden_layers must be/],
  [{ num_key_value_heads: 3 }, /num_key_value_heads must be a divisor of num_attention_heads \(32\), got 3/],
  [{ hidden_size: 100, num_attention_heads: 7 }, /hidden_size \(100\) must be a multiple of num_attention_heads \(7\)/],
  [{ head_dim: 7 }, /head_dim must be even/],
  [{ hidden_act: 'gelu' }, /hidden_act must be "silu" \(supported here\), got "gelu"/],
  [{ rms_norm_eps: null, tie_word_embeddings: 'yes' }, /tie_word_embeddings must be true or false, got "yes"/],
  [{ eos_token_id: 'x' }, /eos_token_id must be a token id or null/],
  [{ eos_token_id: [] }, /eos_token_id must be/],
  [{ model_type: 'bert' }, /model_type "bert" is not supported; supported are .*llama/],
  [{ model_type: '__proto__' }, /is not supported/],
  [{ model_type: undefined }, /model_type must be a string, got nothing/],
])('%j is an error', (json, message) => {
  expect(() => llama(json)).toThrow(message);
});

test('broken files are named with the place', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'rz-config-'));
  await expect(AutoConfig.fromPretrained(dir)).rejects.toThrow(`${dir}: no config.json in this folder`);
  await writeFile(join(dir, 'config.json'), '{\n  "model_type": "llama",\n  oops\n}');
  await expect(AutoConfig.fromPretrained(dir)).rejects.toThrow(/config\.json: not valid JSON at line 3, column 3/);
  await writeFile(join(dir, 'config.json'), '{"model_type":');
  await expect(AutoConfig.fromPretrained(dir)).rejects.toThrow(/config\.json: not valid JSON at line 1, column 15/);
  await writeFile(join(dir, 'config.json'), '[]');
  await expect(AutoConfig.fromPretrained(dir)).rejects.toThrow(/must hold a JSON object/);
});

describe('mistral', () => {
  const mistral = (json: object) => AutoConfig.fromObject({ model_type: 'mistral', ...json }) as MistralConfig;

  test('absent keys have the defaults of MistralConfig', () => {
    expect(mistral({})).toMatchObject({
      modelType: 'mistral',
      vocabSize: 32_000,
      hiddenSize: 4096,
      intermediateSize: 14_336,
      numHiddenLayers: 32,
      numAttentionHeads: 32,
      numKeyValueHeads: 8,
      headDim: 128,
      maxPositionEmbeddings: 131_072,
      rmsNormEps: 1e-6,
      slidingWindow: 4096,
      attentionBias: false,
      mlpBias: false,
      tieWordEmbeddings: false,
      ropeParameters: { ropeTheta: 10_000 },
    });
  });

  test('a window of null is none; fewer key and value heads of null are all', () => {
    expect(mistral({ sliding_window: null }).slidingWindow).toBeNull();
    expect(mistral({ num_key_value_heads: null }).numKeyValueHeads).toBe(32);
    expect(mistral({ head_dim: null, hidden_size: 64, num_attention_heads: 8 }).headDim).toBe(8);
    expect(() => mistral({ sliding_window: 0 })).toThrow(/sliding_window must be a whole number from 1, got 0/);
  });

  // Mistral-7B-v0.1 as it was published
  test('old files', () => {
    const old = mistral({ sliding_window: 4096, rope_theta: 10_000.0, torch_dtype: 'bfloat16', use_cache: true });
    expect(old).toMatchObject({ dtype: 'bfloat16', slidingWindow: 4096, ropeParameters: { ropeTheta: 10_000 } });
  });
});

test('floats are saved as floats, whole ones too', () => {
  const json = {
    model_type: 'mixtral',
    hidden_size: 64,
    rms_norm_eps: 1e-5,
    router_jitter_noise: 0,
    note: ['"router_jitter_noise": 0', 'hidden_size'],
    rope_parameters: { rope_theta: 1e6, rope_type: 'linear', factor: 2 },
    router_aux_loss_coef: 1,
  };
  const text = configText(AutoConfig.fromObject(json));
  expect(JSON.parse(text)).toEqual(json);
  const lines = text.split('\n').map((line) => line.trim());
  for (const line of [
    '"hidden_size": 64,',
    '"rms_norm_eps": 0.00001,',
    '"router_jitter_noise": 0.0,',
    '"rope_theta": 1000000.0,',
    '"factor": 2.0',
    '"router_aux_loss_coef": 1.0',
  ])
    expect(lines).toContain(line);
});

describe('mixtral', () => {
  const mixtral = (json: object) => AutoConfig.fromObject({ model_type: 'mixtral', ...json }) as MixtralConfig;

  test('absent keys have the defaults of MixtralConfig', () => {
    expect(mixtral({})).toMatchObject({
      modelType: 'mixtral',
      vocabSize: 32_000,
      hiddenSize: 4096,
      intermediateSize: 14_336,
      numHiddenLayers: 32,
      numAttentionHeads: 32,
      numKeyValueHeads: 8,
      headDim: 128,
      maxPositionEmbeddings: 131_072,
      rmsNormEps: 1e-5,
      slidingWindow: null,
      tieWordEmbeddings: false,
      ropeParameters: { ropeTheta: 1e6 },
      numLocalExperts: 8,
      numExpertsPerTok: 2,
      outputRouterLogits: false,
      routerAuxLossCoef: 0.001,
    });
  });

  test('old and new files give the same', () => {
    const shared = { num_local_experts: 4, num_experts_per_tok: 3, sliding_window: 4096, router_aux_loss_coef: 0.02 };
    const old = mixtral({ ...shared, rope_theta: 5e5, torch_dtype: 'bfloat16' });
    const now = mixtral({ ...shared, rope_parameters: { rope_theta: 5e5, rope_type: 'default' }, dtype: 'bfloat16' });
    expect({ ...now, raw: 0, floatKeys: 0 }).toEqual({ ...old, raw: 0, floatKeys: 0 });
    expect(old).toMatchObject({ numLocalExperts: 4, numExpertsPerTok: 3, slidingWindow: 4096, dtype: 'bfloat16' });
  });

  test.each([
    [{ router_jitter_noise: 0.1 }, /router_jitter_noise must be 0 \(noise in the router is not supported\), got 0\.1/],
    [{ num_experts_per_tok: 9 }, /num_experts_per_tok must be at most num_local_experts \(8\), got 9/],
    [{ hidden_act: 'gelu' }, /hidden_act must be "silu"/],
  ])('%j is an error', (json, message) => {
    expect(() => mixtral(json)).toThrow(message);
  });
});

describe('qwen2 and qwen3', () => {
  const qwen = (json: object) => AutoConfig.fromObject({ num_hidden_layers: 4, ...json }, 'config.json') as QwenConfig;
  const full = Array.from({ length: 4 }, () => 'full_attention');

  test.each([
    ['qwen2', { attentionBias: true, attentionOutputBias: false, headDim: 128 }],
    ['qwen3', { attentionBias: false, headDim: 128 }],
  ])('absent keys of %s have the defaults of Transformers', (model_type, own) => {
    const config = AutoConfig.fromObject({ model_type });
    expect(config).toMatchObject({
      modelType: model_type,
      vocabSize: 151_936,
      hiddenSize: 4096,
      intermediateSize: 22_016,
      numHiddenLayers: 32,
      numAttentionHeads: 32,
      numKeyValueHeads: 32,
      maxPositionEmbeddings: 32_768,
      rmsNormEps: 1e-6,
      slidingWindow: null,
      layerTypes: Array.from({ length: 32 }, () => 'full_attention'),
      mlpBias: false,
      tieWordEmbeddings: false,
      bosTokenId: null,
      eosTokenId: null,
      ropeParameters: { ropeTheta: 10_000 },
      ...own,
    });
    const narrow = { model_type, hidden_size: 1024, num_attention_heads: 16 };
    expect(() => AutoConfig.fromObject(narrow)).toThrow(/num_key_value_heads must be a divisor .* \(16\), got 32/);
    expect(AutoConfig.fromObject({ ...narrow, num_key_value_heads: null }).headDim).toBe(
      model_type === 'qwen2' ? 64 : 128,
    );
  });

  // Qwen2.5-0.5B and Qwen3-0.6B as they were published
  test('old files', () => {
    expect(
      qwen({
        model_type: 'qwen2',
        hidden_size: 896,
        num_attention_heads: 14,
        num_key_value_heads: 2,
        max_window_layers: 24,
        rope_theta: 1e6,
        sliding_window: 32_768,
        use_sliding_window: false,
        use_mrope: false,
        tie_word_embeddings: true,
        torch_dtype: 'bfloat16',
      }),
    ).toMatchObject({
      headDim: 64,
      dtype: 'bfloat16',
      slidingWindow: null,
      layerTypes: full,
      tieWordEmbeddings: true,
      ropeParameters: { ropeTheta: 1e6 },
    });
    expect(
      qwen({
        model_type: 'qwen3',
        attention_bias: true,
        head_dim: 128,
        hidden_size: 1024,
        num_attention_heads: 16,
        num_key_value_heads: 8,
        rope_scaling: null,
        rope_theta: 1e6,
        sliding_window: null,
      }),
    ).toMatchObject({ headDim: 128, attentionBias: true, slidingWindow: null, layerTypes: full });
  });

  test.each(['qwen2', 'qwen3'])('layers of %s that slide', (model_type) => {
    const sliding = { model_type, use_sliding_window: true, sliding_window: 8 };
    const types = ['full_attention', 'sliding_attention', 'sliding_attention', 'sliding_attention'];
    const old = qwen({ ...sliding, max_window_layers: 1 });
    expect(old).toMatchObject({ slidingWindow: 8, layerTypes: types });
    expect([0, 1, 2, 3].map((layer) => windowOf(old, layer))).toEqual([0, 8, 8, 8]);
    expect(qwen({ ...sliding, max_window_layers: 1, layer_types: full })).toMatchObject({ layerTypes: full });
    expect(qwen({ ...sliding, max_window_layers: 0, layer_types: types }).layerTypes).toEqual(types);
    expect(qwen({ ...sliding, sliding_window: null, max_window_layers: 0 }).layerTypes).toEqual(full);
    expect(() => qwen({ ...sliding, layer_types: ['full_attention'] })).toThrow(
      'config.json: layer_types must be an array of 4 of "full_attention", "sliding_attention"',
    );
    expect(() => qwen({ ...sliding, layer_types: [...full.slice(1), 'chunked_attention'] })).toThrow(
      /layer_types must/,
    );
    expect(() => qwen({ ...sliding, use_sliding_window: false, layer_types: types })).toThrow(
      /layer_types must be all "full_attention" unless use_sliding_window and sliding_window are set/,
    );
  });
});

describe('gpt_neox', () => {
  const neox = (json: object) => AutoConfig.fromObject({ model_type: 'gpt_neox', ...json }, 'c.json') as GPTNeoXConfig;

  test('absent keys have the defaults of GPTNeoXConfig', () => {
    expect(neox({})).toMatchObject({
      modelType: 'gpt_neox',
      vocabSize: 50_432,
      hiddenSize: 6144,
      intermediateSize: 24_576,
      numHiddenLayers: 44,
      numAttentionHeads: 64,
      numKeyValueHeads: 64,
      headDim: 96,
      hiddenAct: 'gelu',
      maxPositionEmbeddings: 2048,
      initializerRange: 0.02,
      layerNormEps: 1e-5,
      attentionBias: true,
      useParallelResidual: true,
      tieWordEmbeddings: false,
      bosTokenId: 0,
      eosTokenId: 2,
      ropeParameters: { ropeType: 'default', ropeTheta: 10_000, partialRotaryFactor: 0.25 },
    });
  });

  // GPT-NeoX-20B as it was published
  test('old and new forms give the same', () => {
    const shape = { hidden_size: 6144, num_attention_heads: 64, hidden_act: 'gelu_fast', layer_norm_eps: 1e-5 };
    const old = neox({ ...shape, rotary_emb_base: 25_000, rotary_pct: 0.5, torch_dtype: 'float16' });
    expect(old).toMatchObject({ hiddenAct: 'gelu_fast', headDim: 96, dtype: 'float16' });
    const ropeParameters = { ropeType: 'default', ropeTheta: 25_000, partialRotaryFactor: 0.5 };
    expect(old.ropeParameters).toEqual(ropeParameters);
    const nested = { rope_type: 'default', rope_theta: 25_000, partial_rotary_factor: 0.5 };
    expect(neox({ ...shape, rope_parameters: nested }).ropeParameters).toEqual(ropeParameters);
    // Transformers 4 wrote both names.
    const both = { rotary_emb_base: 25_000, rotary_pct: 0.5, rope_theta: 25_000, partial_rotary_factor: 0.5 };
    expect(neox({ ...shape, ...both, rope_scaling: null }).ropeParameters).toEqual(ropeParameters);
    expect(neox({ ...both, rope_scaling: { type: 'linear', factor: 2 } }).ropeParameters).toEqual({
      ...ropeParameters,
      ropeType: 'linear',
      factor: 2,
    });
  });

  test.each([
    [{ hidden_act: 'relu' }, /hidden_act must be one of "gelu", "gelu_new", "gelu_fast", .* got "relu"/],
    [{ rotary_pct: 0 }, /rotary_pct must be a number above 0, got 0/],
    [{ rotary_pct: 1.5 }, /the part of a head that is rotated must be at most 1, got 1\.5/],
    [{ hidden_size: 64, num_attention_heads: 8, rotary_pct: 0.4 }, /0\.4 of head_dim \(8\) must be an even .* got 3/],
    [{ hidden_size: 64, num_attention_heads: 8, rotary_pct: 0.1 }, /0\.1 of head_dim \(8\) must be .* got 0/],
    [{ hidden_size: 65, num_attention_heads: 8 }, /hidden_size \(65\) must be a multiple of num_attention_heads/],
    [{ head_dim: 32 }, /head_dim must be hidden_size \/ num_attention_heads, 96, got 32/],
    [{ num_key_value_heads: 8 }, /num_key_value_heads must be num_attention_heads \(64\), got 8/],
    [{ rope_scaling: { type: 'dynamic', factor: 2 } }, /rope type "dynamic" is not supported/],
  ])('%j is an error', (json, message) => {
    expect(() => neox(json)).toThrow(message);
  });
});

test('dropout that a config asks for is not passed over in silence', () => {
  const warn = vi.spyOn(console, 'warn').mockImplementation(() => {});
  llama({ attention_dropout: 0.0 });
  expect(warn).not.toHaveBeenCalled();
  AutoConfig.fromObject({ model_type: 'gpt_neox', hidden_dropout: 0.1, attention_dropout: 0.2 }, 'config.json');
  expect(warn.mock.calls).toEqual([
    ['rankzero: config.json: dropout is not applied (attention_dropout, hidden_dropout)'],
  ]);
  warn.mockRestore();
});

test('saving writes back what was read', async () => {
  const config = await AutoConfig.fromPretrained('examples/moby-llama');
  expect(configToJson(config)).toEqual(JSON.parse(await readFile('examples/moby-llama/config.json', 'utf8')));
  expect(configToJson(config, { dtype: 'float32', transformers_version: '5' })).toMatchObject({
    dtype: 'float32',
    transformers_version: '5',
    pretraining_tp: 1,
  });
  expect(configToJson(llama({ torch_dtype: 'float16' }), { dtype: 'float32' })).toEqual({
    model_type: 'llama',
    torch_dtype: 'float32',
  });
});

test('families register themselves', () => {
  registerConfig('toy', (reader) => ({ ...llama({}), modelType: 'toy', depth: reader.size('depth') }) as ModelConfig);
  expect(AutoConfig.fromObject({ model_type: 'toy', depth: 3 })).toMatchObject({ modelType: 'toy', depth: 3 });
});

test.each([
  ['', 1, 1, 'Unexpected end of JSON input'],
  ['{"a": }', 1, 7, "Unexpected token '}'"],
  [`{"long": "${'x'.repeat(200)}",\n "b": nope}`, 2, 8, "Unexpected token 'o'"],
  ['{"a": 1}\n x', 2, 2, 'Unexpected non-whitespace character after JSON'],
  ['{"a": "\n"}', 1, 8, 'Bad control character in string literal'],
  ['{"a": NaN}', 1, 7, "Unexpected token 'N'"],
])('%j: place and problem of broken JSON', (text, line, column, problem) => {
  expect(() => parseJson(text, 'f')).toThrow(`f: not valid JSON at line ${line}, column ${column}: ${problem}`);
});
