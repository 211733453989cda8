// Model configs: config.json of any supported family as a typed object. Families register a parser under their
// `model_type`; the JSON as read stays in `raw`, so that saving writes back keys that the package does not know.

import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { type ResolveOptions, resolveModel } from '../checkpoint/hub.ts';
import { processState } from '../core/context.ts';
import { describe, FileFormatError, isObject, type JsonObject, readJsonObject } from '../core/json.ts';
import type { FloatDType } from '../tensor/dtype.ts';
import { ConfigReader } from './config-reader.ts';
import { parseGPTNeoXConfig } from './gpt-neox-config.ts';
import { parseLlamaConfig } from './llama-config.ts';
import { parseMistralConfig } from './mistral-config.ts';
import { parseMixtralConfig } from './mixtral-config.ts';
import { parseQwen2Config } from './qwen2-config.ts';
import { parseQwen3Config } from './qwen3-config.ts';

/** What the configs of all families have in common. Families extend it. */
export interface ModelConfig {
  readonly modelType: string;
  readonly architectures: readonly string[] | undefined;
  /** `dtype` or `torch_dtype`; float32 if the file has neither. */
  readonly dtype: FloatDType;
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly numHiddenLayers: number;
  readonly numAttentionHeads: number;
  readonly numKeyValueHeads: number;
  readonly headDim: number;
  readonly maxPositionEmbeddings: number;
  /** Standard deviation of fresh weights. */
  readonly initializerRange: number;
  readonly tieWordEmbeddings: boolean;
  readonly bosTokenId: number | null;
  readonly eosTokenId: number | readonly number[] | null;
  readonly padTokenId: number | null;
  /** The JSON as read. */
  readonly raw: JsonObject;
  /** Keys of `raw` whose numbers are floats in Transformers, whole ones too. */
  readonly floatKeys?: ReadonlySet<string> | undefined;
}

/** Makes a config of one family from the keys of config.json. */
export type ConfigParser = (reader: ConfigReader) => ModelConfig;

const parsers: Map<string, ConfigParser> = processState(
  'configs',
  'parsers of configs, by model_type',
  new Map<string, ConfigParser>([
    ['gpt_neox', parseGPTNeoXConfig],
    ['llama', parseLlamaConfig],
    ['mistral', parseMistralConfig],
    ['mixtral', parseMixtralConfig],
    ['qwen2', parseQwen2Config],
    ['qwen3', parseQwen3Config],
  ]),
);

/** Adds a family: `modelType` is the `model_type` of its config.json. */
export function registerConfig(modelType: string, parser: ConfigParser): void {
  parsers.set(modelType, parser);
}

/** The families that configs can be read of. */
export function supportedModelTypes(): readonly string[] {
  return [...parsers.keys()].sort();
}

/** Reads configs; mirrors `transformers.AutoConfig`. */
export const AutoConfig = {
  /**
   * Reads config.json of a folder or of a hub id in the local cache.
   * Errors name the file and the key, what was got and what is wanted.
   */
  async fromPretrained(nameOrDir: string, options?: ResolveOptions): Promise<ModelConfig> {
    const dir = await resolveModel(nameOrDir, options);
    const path = join(dir, 'config.json');
    const found = await stat(path).then(
      (s) => s.isFile(),
      () => false,
    );
    if (!found) throw new FileFormatError(dir, 'no config.json in this folder');
    return AutoConfig.fromObject(await readJsonObject(path), path);
  },

  /** A config from the keys of config.json; `file` is the name that errors give. */
  fromObject(json: unknown, file = 'config'): ModelConfig {
    if (!isObject(json)) throw new FileFormatError(file, `must be an object, got ${describe(json)}`);
    const reader = new ConfigReader(structuredClone(json), file);
    const modelType = reader.string('model_type');
    const parser = parsers.get(modelType);
    if (!parser) {
      const supported = supportedModelTypes().join(', ');
      throw new FileFormatError(file, `model_type "${modelType}" is not supported; supported are ${supported}`);
    }
    return parser(reader);
  },
};

/**
 * The JSON to save for a config: as it was read, with the dtype of the saved weights under the key (or keys) that the
 * file used, and the keys of `extra` (`architectures`, `transformers_version`, …).
 */
export function configToJson(config: ModelConfig, extra: JsonObject & { dtype?: FloatDType } = {}): JsonObject {
  const { dtype = config.dtype, ...rest } = extra;
  const json: JsonObject = { ...structuredClone(config.raw), ...rest };
  const old = Object.hasOwn(json, 'torch_dtype');
  if (old) json.torch_dtype = dtype;
  if (!old || Object.hasOwn(json, 'dtype')) json.dtype = dtype;
  return json;
}

/**
 * The text of a saved config.json. Transformers refuses a whole number where it wants a float, and JavaScript does not keep
 * the two apart: 0.0 is written as such.
 */
export function configText(config: ModelConfig): string {
  const text = JSON.stringify(config.raw, null, 2);
  return `${text.replace(/^( *"(\w+)": -?\d+)(,?)$/gm, (line, number: string, key: string, comma: string) =>
    config.floatKeys?.has(key) ? `${number}.0${comma}` : line,
  )}\n`;
}
