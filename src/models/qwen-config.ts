// What the configs of Qwen2 and Qwen3 share: their defaults, and which layers slide.
import type { ConfigReader } from './config-reader.ts';
import { type DecoderConfig, type LayerType, readDecoderConfig } from './decoder-config.ts';

export interface QwenConfig extends DecoderConfig {
  /** null unless `use_sliding_window`. */
  readonly slidingWindow: number | null;
  readonly layerTypes: readonly LayerType[];
}

const supported: readonly LayerType[] = ['full_attention', 'sliding_attention'];

/** `layer_types`, or what older files mean: layers from `max_window_layers` on slide. */
export function readQwenConfig(reader: ConfigReader, defaults: { headDim?: number } = {}): QwenConfig {
  const common = readDecoderConfig(reader, {
    ...defaults,
    vocabSize: 151_936,
    hiddenSize: 4096,
    intermediateSize: 22_016,
    numHiddenLayers: 32,
    numAttentionHeads: 32,
    numKeyValueHeads: 32,
    maxPositionEmbeddings: 32_768,
    bosTokenId: null,
    eosTokenId: null,
    tieWordEmbeddings: false,
  });
  const layers = common.numHiddenLayers;
  const window = reader.sizeOrNull('sliding_window', 4096);
  const slidingWindow = reader.boolean('use_sliding_window', false) ? window : null;
  const full = slidingWindow === null ? layers : reader.count('max_window_layers', 28);
  const byDepth = (_: unknown, i: number): LayerType => (i < full ? 'full_attention' : 'sliding_attention');
  const layerTypes = reader.choices('layer_types', supported, layers) ?? Array.from({ length: layers }, byDepth);
  if (slidingWindow === null && layerTypes.includes('sliding_attention')) {
    throw reader.bad('layer_types', 'all "full_attention" unless use_sliding_window and sliding_window are set');
  }
  return { ...common, slidingWindow, layerTypes };
}
