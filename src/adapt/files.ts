// Adapters as PEFT stores them: adapter_config.json and adapter_model.safetensors.
import { mkdir, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { openSafetensors, readTensor, SafetensorsWriter, writeWhole } from '../checkpoint/safetensors.ts';
import { usableDType } from '../checkpoint/safetensors-header.ts';
import type { PretrainedWriter, SavedTensor } from '../checkpoint/save_pretrained.ts';
import { FileFormatError, type JsonObject, readJsonObject } from '../core/json.ts';
import type { CausalLM } from '../models/causal_lm.ts';
import { layersOf, removeAdapter } from '../nn/lora.ts';
import type { Parameter } from '../nn/parameter.ts';
import type { FullyShardedDataParallel } from '../parallel/fsdp/fsdp.ts';
import { saveParameters } from '../parallel/fsdp/save_parameters.ts';
import { HostParts } from '../tensor/host_parts.ts';
import { Tensor } from '../tensor/tensor.ts';
import { type LoraConfig, parsePeftConfig, peftConfig } from './config.ts';
import { adapterOf, addLora, defaultAdapter } from './lora.ts';

const configName = 'adapter_config.json';
const weightsName = 'adapter_model.safetensors';
const prefix = 'base_model.model.';

export interface LoadAdapterOptions {
  /** What the model calls it. Default `default`. */
  name?: string | undefined;
  /** Trains it on. Default false: it is frozen, as in PeftModel.from_pretrained. */
  trainable?: boolean | undefined;
}

/**
 * Gives `model` the adapter of a folder that PEFT or saveAdapter wrote, and makes it active; before transform and FSDP. On a model on
 * meta (ranks that get their weights from rank 0) only adapter_config.json is read. Mirrors peft.PeftModel.from_pretrained.
 *
 * Errors name the file and its keys: settings that are not supported, an adapter of another base (layers that the model lacks), tensors
 * that are missing, too many, or of another shape. The model has no such adapter then.
 */
export async function loadAdapter<M extends CausalLM>(
  model: M,
  dir: string,
  { name = defaultAdapter, trainable = false }: LoadAdapterOptions = {},
): Promise<M> {
  await addAdapterOf(model, dir, await readAdapterConfig(dir), name);
  if (!trainable) model.requiresGrad_(false);
  return model;
}

/** @internal The same with an adapter_config.json that somebody has read: files may be on rank 0's host alone. It is trained on. */
export async function addAdapterOf(
  model: CausalLM,
  dir: string,
  json: JsonObject,
  name: string = defaultAdapter,
): Promise<void> {
  const file = join(dir, configName);
  const config = parsePeftConfig(json, file);
  const values = isOnMeta(model) ? undefined : await readTensors(dir);
  try {
    addLora(model, config, name);
  } catch (cause) {
    throw new FileFormatError(file, `the adapter does not fit the model: ${(cause as Error).message}`, { cause });
  }
  try {
    if (values) fill(model, name, values, join(dir, weightsName));
  } catch (error) {
    removeAdapter(model, name);
    throw error;
  }
}

/** @internal adapter_config.json of a folder. */
export async function readAdapterConfig(dir: string): Promise<JsonObject> {
  try {
    return await readJsonObject(join(dir, configName));
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'ENOENT') throw cause;
    throw new FileFormatError(dir, `no ${configName}: this is not the folder of an adapter`, { cause });
  }
}

const isOnMeta = (model: CausalLM): boolean => [...model.parameters()].some(({ device }) => device === 'meta');

async function readTensors(dir: string): Promise<Map<string, Tensor>> {
  const names = await readdir(dir);
  if (!names.includes(weightsName)) {
    const pickled = names.includes('adapter_model.bin')
      ? '; adapter_model.bin is pickled: load it in PEFT and save it again'
      : '';
    throw new FileFormatError(dir, `no ${weightsName}${pickled}`);
  }
  const file = await openSafetensors(join(dir, weightsName));
  try {
    const out = new Map<string, Tensor>();
    for (const [key, entry] of file.tensors) {
      const tensor = Tensor.empty(entry.shape, usableDType(entry, key, file.path), 'staging');
      readTensor(file, key, tensor.handle);
      out.set(key, tensor);
    }
    return out;
  } finally {
    file.close();
  }
}

/** Every parameter of the adapter by its key in the file. */
function keysOf(model: CausalLM, name: string): Map<string, Parameter> {
  const { adapter } = adapterOf(model, name);
  const out = new Map<string, Parameter>();
  const adapted = new Set<string>();
  for (const [path, { bias }, { a, b, magnitude }] of layersOf(model, name)) {
    out.set(`${prefix}${path}.lora_A.weight`, a);
    out.set(`${prefix}${path}.lora_B.weight`, b);
    if (magnitude) out.set(`${prefix}${path}.lora_magnitude_vector`, magnitude);
    if (bias && adapter.trained.has(bias.name)) {
      // PEFT keeps an adapted layer below the module that adapts it.
      out.set(`${prefix}${path}.base_layer.bias`, bias);
      adapted.add(bias.name);
    }
  }
  for (const [, parameter] of model.namedParameters()) {
    const { name: own } = parameter;
    if (adapter.trained.has(own) && !adapted.has(own)) out.set(prefix + own, parameter);
  }
  return out;
}

function fill(model: CausalLM, name: string, values: ReadonlyMap<string, Tensor>, file: string): void {
  const wanted = keysOf(model, name);
  const problems: string[] = [];
  const list = (label: string, keys: readonly string[]): void => {
    const more = keys.length > 8 ? ` and ${keys.length - 8} more` : '';
    if (keys.length > 0) problems.push(`${label}: ${keys.slice(0, 8).join(', ')}${more}`);
  };
  const found = (key: string): Tensor | undefined => values.get(key) ?? values.get(key.replace('.base_layer.', '.'));
  list(
    'missing',
    [...wanted.keys()].filter((key) => !found(key)),
  );
  const known = new Set([...wanted.keys()].flatMap((key) => [key, key.replace('.base_layer.', '.')]));
  list(
    'unexpected',
    [...values.keys()].filter((key) => !known.has(key)),
  );
  list(
    'wrong shape',
    [...wanted].flatMap(([key, { shape }]) => {
      const got = found(key)?.shape;
      return got && got.join() !== shape.join() ? [`${key} is [${got}] but [${shape}] is wanted`] : [];
    }),
  );
  if (problems.length > 0)
    throw new FileFormatError(file, `the adapter does not fit the model; ${problems.join('; ')}`);
  for (const [key, parameter] of wanted) {
    const data = Tensor.empty(parameter.shape, parameter.dtype, 'parameter');
    using value = found(key)!;
    data.copyFrom(value);
    parameter.setData(data, 'file');
  }
}

/**
 * Writes the active adapter (or `name`) to `dir` as PEFT does: adapter_config.json and adapter_model.safetensors, float32. With FSDP
 * every rank calls it, and rank 0 writes; the base is not gathered. Mirrors PeftModel.save_pretrained. Errors are the same on every rank.
 */
export async function saveAdapter(
  model: CausalLM | FullyShardedDataParallel<CausalLM>,
  dir: string,
  options: { name?: string | undefined } = {},
): Promise<void> {
  const fsdp = 'module' in model ? model : undefined;
  const module = 'module' in model ? model.module : model;
  const { name, adapter } = adapterOf(module, options.name);
  const entries = keysOf(module, name);
  const tensors = [...entries].map(([key, { fullShape, dtype }]) => ({ name: key, shape: fullShape, dtype }));
  const targets = [...new Set([...adapter.layers.keys()].map((path) => path.slice(path.lastIndexOf('.') + 1)))].sort();
  const base = module.source?.dir;
  const text = `${JSON.stringify(peftConfig(adapter.config as LoraConfig, base, targets), undefined, 2)}\n`;
  const open = (): Promise<PretrainedWriter> => openAdapter(dir, text, tensors);
  const names = new Map([...entries].map(([key, parameter]) => [parameter, key]));
  if (fsdp) {
    await saveParameters(`saving ${dir}`, names, open, fsdp.units, fsdp.groups);
    return;
  }
  const writer = await open();
  try {
    for (const [parameter, key] of names) {
      using value = parameter.detach();
      await writer.write(key, value);
    }
    await writer.finish();
  } catch (error) {
    await writer.abort();
    throw error;
  }
}

async function openAdapter(dir: string, config: string, tensors: readonly SavedTensor[]): Promise<PretrainedWriter> {
  await mkdir(dir, { recursive: true });
  const writer = SafetensorsWriter.create(join(dir, weightsName), tensors, { format: 'pt' });
  const parts = new HostParts();
  return {
    write: (name, tensor, offset = 0) =>
      parts.write(tensor, (part, at) => writer.write(name, part.handle, offset + at)),
    drain: () => writer.drain(),
    finish: async () => {
      parts[Symbol.dispose]();
      await writer.finish();
      await writeWhole(join(dir, configName), config);
    },
    abort: () => {
      parts[Symbol.dispose]();
      return writer.abort();
    },
  };
}
