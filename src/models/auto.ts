// AutoModelForCausalLM: the registry of families, models from a config, and models whose parameters are recipes on the files
// of a checkpoint. No tensor bytes are read before somebody wants them.

import { resolve } from 'node:path';
import { findStoredWeights, type StoredWeight } from '../checkpoint/bitsandbytes.ts';
import { type CheckpointEntry, type FilePart, openCheckpoint } from '../checkpoint/hf-files.ts';
import { resolveModel } from '../checkpoint/hub.ts';
import { usableDType } from '../checkpoint/safetensors-header.ts';
import { processState } from '../core/context.ts';
import { native } from '../native.ts';
import type { Parameter } from '../nn/parameter.ts';
import type { ParallelPlan } from '../nn/plan.ts';
import { QuantizedRecipe } from '../nn/quantized_recipe.ts';
import { FileRecipe } from '../nn/recipe.ts';
import { applyTies, tiedNames } from '../nn/tied.ts';
import { dtypeSize, type FloatDType, isFloating } from '../tensor/dtype.ts';
import type { CausalLM } from './causal_lm.ts';
import { AutoConfig, type ModelConfig } from './config.ts';
import { builtInFamilies } from './families.ts';
import { linearLayers } from './linear_layers.ts';

export interface ModelFamily {
  create(config: ModelConfig, dtype: FloatDType): CausalLM;
  /** Names in checkpoint files that hold nothing the model uses. */
  ignoredKeys?: RegExp | undefined;
  /** Where a parameter stands in another layout of the checkpoint; undefined where that has no other place for it. */
  otherPart?: ((name: string, config: ModelConfig) => FilePart | undefined) | undefined;
  /** How transform divides the model; without it the family cannot be transformed. */
  parallelPlan?: ParallelPlan | undefined;
}

const families: Map<string, ModelFamily> = processState(
  'families',
  'families of models, by model_type',
  new Map(Object.entries(builtInFamilies)),
);

/**
 * Adds a family under its `model_type`, or replaces one. Its config is registered with registerConfig. The parameters of what
 * `create` makes are named by their paths; head and embedding are tied where the config says so.
 */
export function registerModel(modelType: string, family: ModelFamily): void {
  const create = (config: ModelConfig, dtype: FloatDType): CausalLM => {
    const model = family.create(config, dtype);
    if (config.tieWordEmbeddings && !model.isTied) model.tieWeights();
    model.assignParameterNames();
    return model;
  };
  families.set(modelType, { ...family, create });
}

export interface FromConfigOptions {
  /** Default: the config's dtype, float32 when it has none. */
  dtype?: FloatDType | undefined;
}

export interface FromPretrainedOptions extends FromConfigOptions {
  /** Accepted for compatibility; parameters are always read lazily, straight to where they are wanted. */
  lowCpuMemUsage?: boolean | undefined;
  /** Of a hub id in the local cache. Default main. */
  revision?: string | undefined;
}

/** @internal Families that transform can divide. */
export function supportedFamilies(): string[] {
  return [...families].filter(([, family]) => family.parallelPlan).map(([modelType]) => modelType);
}

/** @internal */
export function familyOf(config: ModelConfig): ModelFamily {
  const family = families.get(config.modelType);
  if (!family) {
    const supported = [...families.keys()].sort().join(', ');
    throw new Error(`model_type "${config.modelType}" is not supported; supported: ${supported}`);
  }
  return family;
}

/** A fresh model, initialised as Transformers initialises it (lazily; on meta inside initEmptyWeights). */
function fromConfig(config: ModelConfig, options: FromConfigOptions = {}): CausalLM {
  return familyOf(config).create(config, options.dtype ?? config.dtype ?? 'float32');
}

/**
 * The model of a folder, or of a hub id in the local Hugging Face cache. Missing, unexpected and mis-shaped tensors are one
 * error. The files stay open until every parameter has been read.
 */
async function fromPretrained(nameOrDir: string, options: FromPretrainedOptions = {}): Promise<CausalLM> {
  const dir = await resolveModel(nameOrDir, { revision: options.revision });
  const config = await AutoConfig.fromPretrained(dir);
  const model = fromConfig(config, options);
  const checkpoint = await openCheckpoint(dir);
  try {
    await untieWhereFilesDiffer(model, checkpoint.tensors);
    attach(model, checkpoint.tensors, await findStoredWeights(checkpoint.tensors), dir);
  } catch (error) {
    checkpoint.close();
    throw error;
  }
  model.source = { dir: resolve(dir) };
  model.eval();
  return model;
}

/** A file may hold both sides of a tied pair: when they differ, they are not tied, and a warning says so. */
async function untieWhereFilesDiffer(model: CausalLM, entries: ReadonlyMap<string, CheckpointEntry>): Promise<void> {
  const table = tiedNames(model);
  const kept: [string, string][] = [];
  for (const [alias, name] of table) {
    const [a, b] = [entries.get(alias), entries.get(name)];
    if (!a || !b || (await sameBytes(a, b))) kept.push([alias, name]);
    else console.warn(`rankzero: the checkpoint holds different values for ${name} and ${alias}; they are not tied`);
  }
  if (kept.length < table.length) applyTies(model, kept, 'cpu');
}

async function sameBytes(a: CheckpointEntry, b: CheckpointEntry): Promise<boolean> {
  if (a.dtype !== b.dtype || a.byteLength !== b.byteLength) return false;
  const step = 4 << 20;
  for (let at = 0; at < a.byteLength; at += step) {
    const length = Math.min(step, a.byteLength - at);
    const [x, y] = await Promise.all(
      [a, b].map((entry) => native.fileReadBytes(entry.source.file, entry.byteOffset + at, length)),
    );
    if (Buffer.compare(Buffer.from(x!), Buffer.from(y!)) !== 0) return false;
  }
  return true;
}

/** Gives every parameter the recipe of its place in the files. */
function attach(
  model: CausalLM,
  entries: ReadonlyMap<string, CheckpointEntry>,
  stored: ReadonlyMap<string, StoredWeight>,
  dir: string,
): void {
  const ignored = familyOf(model.config).ignoredKeys;
  const { otherPart } = familyOf(model.config);
  const wanted = new Map<string, Parameter>();
  const missing: string[] = [];
  const misshaped = new Set<string>();
  const aliases = tiedNames(model);
  for (const [name, parameter] of model.namedParameters()) wanted.set(name, parameter);
  for (const [alias, name] of aliases) {
    // The file may lack either side of a tied pair.
    if (!entries.has(alias)) continue;
    if (!entries.has(name)) {
      wanted.set(alias, wanted.get(name)!);
      wanted.delete(name);
    }
  }
  const known = new Set([...wanted.keys(), ...aliases.flat()]);
  for (const [name, parameter] of wanted) {
    const quantised = stored.get(name);
    if (quantised) {
      for (const key of quantised.parts) known.add(key);
      if (quantised.shape.join() === parameter.shape.join()) takeStored(model, name, parameter, quantised);
      else misshaped.add(`${name} is [${quantised.shape}] but the config wants [${parameter.shape}]`);
      continue;
    }
    const whole: FilePart = { name, shape: parameter.shape, start: 0 };
    const part = entries.has(name) ? whole : (otherPart?.(name, model.config) ?? whole);
    const entry = entries.get(part.name);
    if (!entry) {
      missing.push(name);
      continue;
    }
    known.add(part.name);
    if (entry.shape.join() !== part.shape.join()) {
      misshaped.add(`${part.name} is [${entry.shape}] but the config wants [${part.shape}]`);
      continue;
    }
    const dtype = usableDType(entry, part.name, entry.source.path);
    if (!isFloating(dtype))
      throw new Error(
        `${entry.source.path}: ${part.name} is ${dtype}, but parameters are float32, bfloat16 or float16`,
      );
    parameter.checkpointDtype = dtype;
    const offset = entry.byteOffset + part.start * dtypeSize(dtype);
    parameter.setRecipe(new FileRecipe(entry.source.file, offset, dtype, parameter.numel, resolve(entry.source.path)));
  }
  const unexpected = [...entries.keys()].filter((name) => !known.has(name) && !ignored?.test(name));
  const problems = [
    ['missing', missing],
    ['unexpected', unexpected],
    ['wrong shape', [...misshaped]],
  ].filter(([, list]) => list!.length > 0);
  if (problems.length === 0) return;
  const text = problems.map(([label, list]) => {
    const names = list as string[];
    return `${label}: ${names.slice(0, 8).join(', ')}${names.length > 8 ? ` and ${names.length - 8} more` : ''}`;
  });
  throw new Error(`the checkpoint in ${dir} does not fit its config; ${text.join('; ')}`);
}

/** A weight that is quantised in its file stays so. Error: of a layer that computes with all bits. */
function takeStored(model: CausalLM, name: string, parameter: Parameter, stored: StoredWeight): void {
  if (![...linearLayers(model)].some(([, { weight }]) => weight === parameter))
    throw new Error(`the checkpoint has ${name} quantised, but only linear layers besides the head and experts can be`);
  parameter.quantize(stored.storage);
  parameter.checkpointDtype = stored.dtype;
  parameter.setRecipe(new QuantizedRecipe(stored.source, stored.storage, parameter.placement));
}

export const AutoModelForCausalLM: {
  fromConfig: typeof fromConfig;
  fromPretrained: typeof fromPretrained;
} = { fromConfig, fromPretrained };
