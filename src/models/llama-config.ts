// LlamaConfig of Transformers: the same keys in camelCase, the same defaults.
import type { ModelConfig } from './config.ts';
import { readBaseConfig } from './config-base.ts';
import type { ConfigReader } from './config-reader.ts';
import { type RopeParameters, readRopeParameters } from './rope-config.ts';

/** Settings of Llama 2, 3 and 3.1 models. */
export interface LlamaConfig extends ModelConfig {
  readonly modelType: 'llama';
  readonly intermediateSize: number;
  readonly hiddenAct: 'silu';
  readonly rmsNormEps: number;
  readonly attentionBias: boolean;
  readonly mlpBias: boolean;
  readonly ropeParameters: RopeParameters;
}

export function parseLlamaConfig(reader: ConfigReader): LlamaConfig {
  const base = readBaseConfig(reader, {
    vocabSize: 32_000,
    hiddenSize: 4096,
    numHiddenLayers: 32,
    numAttentionHeads: 32,
    maxPositionEmbeddings: 2048,
    bosTokenId: 1,
    eosTokenId: 2,
    tieWordEmbeddings: false,
  });
  return {
    ...base,
    modelType: 'llama',
    intermediateSize: reader.size('intermediate_size', 11_008),
    hiddenAct: reader.choice('hidden_act', ['silu'], 'silu'),
    rmsNormEps: reader.positive('rms_norm_eps', 1e-6),
    attentionBias: reader.boolean('attention_bias', false),
    mlpBias: reader.boolean('mlp_bias', false),
    ropeParameters: readRopeParameters(reader),
  };
}
