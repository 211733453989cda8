// Qwen2Config of Transformers: the same keys in camelCase, the same defaults.
import type { ConfigReader } from './config-reader.ts';
import { type QwenConfig, readQwenConfig } from './qwen-config.ts';

/** Settings of Qwen2 and Qwen2.5 models. */
export interface Qwen2Config extends QwenConfig {
  readonly modelType: 'qwen2';
}

export function parseQwen2Config(reader: ConfigReader): Qwen2Config {
  return { ...readQwenConfig(reader), modelType: 'qwen2', attentionBias: true, attentionOutputBias: false };
}
