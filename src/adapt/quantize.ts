// quantize: the weights of a model's linear layers in few bits, before the model is divided.
import { linearLayers } from '../models/linear_layers.ts';
import type { Module } from '../nn/module.ts';
import type { QuantizedStorage } from '../tensor/quantized.ts';

/** `nf4`: 4 bits in blocks of 64, as QLoRA; `int8`: 8 bits, a scale for each row. */
export type QuantizationScheme = 'nf4' | 'int8';

export interface QuantizeOptions {
  /** Default nf4. */
  scheme?: QuantizationScheme | undefined;
  /** Of nf4: the scales are quantised too, to 8 bits in blocks of 256. Default true. */
  doubleQuant?: boolean | undefined;
  /** Which linear layers, by their path in the model. Default: all. The output head, and what an expert holds, stay as they are. */
  modules?: ((path: string) => boolean) | undefined;
}

/**
 * Stores the weights of linear layers in few bits and freezes them; their biases, and all other layers, stay as they are. The bits
 * are those of bitsandbytes for the whole weight, however it is divided afterwards: call it before transform and FSDP, on every
 * rank, on meta too. Values are quantised when they are loaded, a parameter at a time. A linear computes with what its weight stands
 * for, in the dtype of its input, and passes gradients on. Returns the names of the weights, and changes `model`.
 *
 * Errors: a model that FSDP has wrapped; no such layer; an adapter with lengths of rows (DoRA).
 */
export function quantize(model: Module, options: QuantizeOptions = {}): string[] {
  const { scheme = 'nf4', doubleQuant = true, modules = () => true } = options;
  const storage: QuantizedStorage = scheme === 'nf4' && doubleQuant ? 'nf4-double' : scheme;
  const chosen = [...linearLayers(model)].filter(([path]) => modules(path));
  if (chosen.length === 0)
    throw new Error(`quantize: ${model.constructor.name} has no linear layer, besides the head, that modules chooses`);
  const dora = [...model.namedParameters()].find(([name]) => name.includes('.lora_magnitude_vector.'));
  if (dora) throw new Error(`quantize: ${dora[0]} is a length of rows that cannot be measured then (DoRA)`);
  const names: string[] = [];
  for (const [path, { weight }] of chosen) {
    // Tied ones once; those of a checkpoint that was quantised are.
    if (!weight.quantized) weight.quantize(storage);
    names.push(path === '' ? 'weight' : `${path}.weight`);
  }
  return names;
}
