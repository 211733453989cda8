// MistralConfig of Transformers: the same keys in camelCase, the same defaults.
import type { ConfigReader } from './config-reader.ts';
import { type DecoderConfig, readDecoderConfig } from './decoder-config.ts';

/** Settings of Mistral models. */
export interface MistralConfig extends DecoderConfig {
  readonly modelType: 'mistral';
  readonly slidingWindow: number | null;
}

export function parseMistralConfig(reader: ConfigReader): MistralConfig {
  const common = readDecoderConfig(reader, {
    vocabSize: 32_000,
    hiddenSize: 4096,
    intermediateSize: 14_336,
    numHiddenLayers: 32,
    numAttentionHeads: 32,
    numKeyValueHeads: 8,
    maxPositionEmbeddings: 131_072,
    bosTokenId: 1,
    eosTokenId: 2,
    tieWordEmbeddings: false,
  });
  return { ...common, modelType: 'mistral', slidingWindow: reader.sizeOrNull('sliding_window', 4096) };
}
