// GPTNeoXConfig of Transformers: the same keys in camelCase, the same defaults.
import { FileFormatError } from '../core/json.ts';
import type { ModelConfig } from './config.ts';
import { readBaseConfig } from './config-base.ts';
import type { ConfigReader } from './config-reader.ts';
import { rotaryDim } from './rope.ts';
import { type RopeParameters, readRopeParameters } from './rope-config.ts';

/** `gelu` is exact; the others are three names of its approximation by tanh. */
const activations = ['gelu', 'gelu_new', 'gelu_fast', 'gelu_pytorch_tanh'] as const;

/** Settings of GPT-NeoX models (Pythia, GPT-NeoX-20B). */
export interface GPTNeoXConfig extends ModelConfig {
  readonly modelType: 'gpt_neox';
  readonly intermediateSize: number;
  readonly hiddenAct: (typeof activations)[number];
  readonly layerNormEps: number;
  readonly attentionBias: boolean;
  /** Attention and MLP both read the layer's input, instead of one after the other. */
  readonly useParallelResidual: boolean;
  /** `partialRotaryFactor` is `rotary_pct` in older files, `ropeTheta` is `rotary_emb_base`. */
  readonly ropeParameters: RopeParameters;
}

export function parseGPTNeoXConfig(reader: ConfigReader): GPTNeoXConfig {
  const base = readBaseConfig(reader, {
    vocabSize: 50_432,
    hiddenSize: 6144,
    numHiddenLayers: 44,
    numAttentionHeads: 64,
    maxPositionEmbeddings: 2048,
    bosTokenId: 0,
    eosTokenId: 2,
    tieWordEmbeddings: false,
  });
  const { numAttentionHeads: heads, headDim, hiddenSize } = base;
  if (headDim * heads !== hiddenSize)
    throw reader.bad('head_dim', `hidden_size / num_attention_heads, ${hiddenSize / heads}`);
  if (base.numKeyValueHeads !== heads) throw reader.bad('num_key_value_heads', `num_attention_heads (${heads})`);
  const ropeParameters = readRopeParameters(reader, {
    ropeTheta: reader.positive('rotary_emb_base', 10_000),
    partialRotaryFactor: reader.positive('rotary_pct', 0.25),
  });
  const rotary = rotaryDim(ropeParameters, headDim);
  if (rotary === 0 || rotary % 2 !== 0) {
    const share = `${ropeParameters.partialRotaryFactor} of head_dim (${headDim})`;
    throw new FileFormatError(reader.file, `${share} must be an even number of rotated elements, got ${rotary}`);
  }
  return {
    ...base,
    modelType: 'gpt_neox',
    intermediateSize: reader.size('intermediate_size', 24_576),
    hiddenAct: reader.choice('hidden_act', activations, 'gelu'),
    layerNormEps: reader.positive('layer_norm_eps', 1e-5),
    attentionBias: reader.boolean('attention_bias', true),
    useParallelResidual: reader.boolean('use_parallel_residual', true),
    ropeParameters,
  };
}
