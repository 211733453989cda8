// Qwen3Config of Transformers: the same keys in camelCase, the same defaults.
import type { ConfigReader } from './config-reader.ts';
import { type QwenConfig, readQwenConfig } from './qwen-config.ts';

/** Settings of Qwen3 models (the dense ones). */
export interface Qwen3Config extends QwenConfig {
  readonly modelType: 'qwen3';
}

export function parseQwen3Config(reader: ConfigReader): Qwen3Config {
  const common = readQwenConfig(reader, { headDim: 128 });
  return { ...common, modelType: 'qwen3', attentionBias: reader.boolean('attention_bias', false) };
}
