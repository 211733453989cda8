// LlamaConfig of Transformers: the same keys in camelCase, the same defaults.
import type { ConfigReader } from './config-reader.ts';
import { type DecoderConfig, readDecoderConfig } from './decoder-config.ts';

/** Settings of Llama 2, 3 and 3.1 models. */
export interface LlamaConfig extends DecoderConfig {
  readonly modelType: 'llama';
}

export function parseLlamaConfig(reader: ConfigReader): LlamaConfig {
  const common = readDecoderConfig(reader, {
    vocabSize: 32_000,
    hiddenSize: 4096,
    intermediateSize: 11_008,
    numHiddenLayers: 32,
    numAttentionHeads: 32,
    maxPositionEmbeddings: 2048,
    bosTokenId: 1,
    eosTokenId: 2,
    tieWordEmbeddings: false,
  });
  return {
    ...common,
    modelType: 'llama',
    attentionBias: reader.boolean('attention_bias', false),
    mlpBias: reader.boolean('mlp_bias', false),
  };
}
