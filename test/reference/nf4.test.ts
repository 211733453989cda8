// NF4 against bitsandbytes: codes, scales and what they stand for, bit for bit.
import { cpSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { quantize } from '../../src/adapt/quantize.ts';
import { findStoredWeights } from '../../src/checkpoint/bitsandbytes.ts';
import { openSafetensors } from '../../src/checkpoint/safetensors.ts';
import { loadSafetensors, saveSafetensors } from '../../src/checkpoint/tensors.ts';
import { AutoModelForCausalLM } from '../../src/models/auto.ts';
import type { CausalLM } from '../../src/models/causal_lm.ts';
import { native } from '../../src/native.ts';
import { QuantizedLayout, type QuantizedStorage } from '../../src/tensor/quantized.ts';
import { Tensor } from '../../src/tensor/tensor.ts';
import { caseDir, referenceTensors } from './cases.ts';

let reference: Map<string, Tensor>;
beforeAll(async () => {
  reference = await referenceTensors('nf4');
});

const bits = (tensor: Tensor): Uint8Array => new Uint8Array(tensor.dataSync().buffer);
const wanted = (name: string): Uint8Array => bits(reference.get(name)!);

function quantised(
  name: string,
  storage: QuantizedStorage,
): { bytes: Uint8Array; layout: QuantizedLayout; again: Uint8Array } {
  const weight = reference.get(`${name}.weight`)!;
  const layout = QuantizedLayout.whole(storage, [weight.size(0), weight.size(1)]);
  const q = Tensor.empty([layout.bytes], 'uint8');
  native.quantizeWeight(q.handle, weight.handle, ...layout.operands);
  const y = Tensor.empty(weight.shape);
  native.dequantizeWeight(y.handle, q.handle, ...layout.operands);
  return { bytes: bits(q), layout, again: bits(y) };
}

describe.each(['even', 'odd'])('the %s shape', (name) => {
  it('has the codes, absmax and values of bitsandbytes', () => {
    const { bytes, layout, again } = quantised(name, 'nf4');
    const packed = wanted(`${name}.packed`);
    const absmax = wanted(`${name}.absmax`);
    expect(bytes.subarray(0, packed.length)).toEqual(packed);
    expect(bytes.subarray(layout.scalesAt, layout.scalesAt + absmax.length)).toEqual(absmax);
    expect(again).toEqual(wanted(`${name}.dequantised`));
  });
});

it('stores scales in 8 bits as bitsandbytes does', () => {
  const { bytes, layout, again } = quantised('even', 'nf4-double');
  const at = (from: number, name: string): void => {
    const want = wanted(`even.double.${name}`);
    expect(bytes.slice(from, from + want.length), name).toEqual(want);
  };
  expect(bytes.subarray(0, 12288)).toEqual(wanted('even.packed'));
  at(layout.offsetAt, 'offset');
  at(layout.groupsAt, 'nested_absmax');
  at(layout.scalesAt, 'absmax');
  expect(again).toEqual(wanted('even.double.dequantised'));
});

// Of fewer scales than there are lanes, and of some more: one after the other they have other bits.
it.each([
  [6, [0, 4, 5, 1, 2, 3]],
  [11, [8, 9, 10, 0, 1, 2, 3, 4, 5, 6, 7]],
])('adds %i scales in the order of PyTorch', (blocks, order) => {
  const scales = Float32Array.from({ length: blocks }, (_, i) => Math.fround(Math.exp(9 * Math.sin(2 * i + 1))));
  const weight = Float32Array.from({ length: blocks * 64 }, (_, i) => scales[Math.floor(i / 64)]!);
  const layout = QuantizedLayout.whole('nf4-double', [blocks, 64]);
  const q = Tensor.empty([layout.bytes], 'uint8');
  native.quantizeWeight(q.handle, Tensor.from(weight).handle, ...layout.operands);
  const add = (indices: readonly number[]): number => indices.reduce((sum, i) => Math.fround(sum + scales[i]!), 0);
  const want = Math.fround(add(order) / blocks);
  expect(want).not.toBe(Math.fround(add(order.toSorted((a, b) => a - b)) / blocks));
  expect(new Float32Array(bits(q).buffer, layout.offsetAt, 1)[0]).toBe(want);
});

describe('a checkpoint in the layout of bitsandbytes', () => {
  const folder = mkdtempSync(join(tmpdir(), 'rankzero-bnb-'));
  afterAll(() => rmSync(folder, { recursive: true }));

  it('has the bytes that quantising gives', async () => {
    const file = await openSafetensors(`${caseDir('nf4')}/bnb.safetensors`);
    const entries = new Map([...file.tensors].map(([name, entry]) => [name, { ...entry, source: file }]));
    const stored = await findStoredWeights(entries);
    const { storage, shape, dtype, source, parts } = stored.get('weight')!;
    expect([storage, shape, dtype]).toEqual(['nf4-double', [256, 96], 'float32']);
    expect(new Set(parts)).toEqual(new Set(entries.keys()));
    const { bytes, layout } = quantised('even', 'nf4-double');
    const whole = Tensor.empty([layout.bytes], 'uint8');
    source.fill(whole, layout);
    expect(Buffer.compare(bits(whole), bytes)).toBe(0);
    file.close();
  });

  it.each(['nf4', 'int8'] as const)('in %s is the model that quantize makes of the original', async (scheme) => {
    const dir = join(folder, scheme);
    cpSync(caseDir('llama'), dir, { recursive: true });
    const own = await AutoModelForCausalLM.fromPretrained(caseDir('llama'));
    quantize(own, { scheme, doubleQuant: false });
    await writeLikeBitsandbytes(own, join(dir, 'model.safetensors'));
    const loaded = await AutoModelForCausalLM.fromPretrained(dir);
    const logits = (model: CausalLM): Uint8Array => bits(model.forward({ inputIds: [[3, 1, 4, 1, 5, 9]] }).logits);
    expect(Buffer.compare(logits(loaded), logits(own))).toBe(0);
    const weight = new Map(loaded.namedParameters()).get('model.layers.0.mlp.up_proj.weight')!;
    expect([weight.quantized!.storage, weight.requiresGrad]).toEqual([scheme, false]);
    await expect(loaded.savePretrained(join(folder, 'again'))).rejects.toThrow(/is quantised and .* merge that into/);
  });

  it('of another table is refused by name', async () => {
    const tensors = await loadSafetensors(`${caseDir('nf4')}/bnb.safetensors`);
    tensors.set('weight.quant_map', Tensor.full([16], 0.5));
    const path = join(folder, 'other.safetensors');
    await saveSafetensors(path, tensors);
    const file = await openSafetensors(path);
    const entries = new Map([...file.tensors].map(([name, entry]) => [name, { ...entry, source: file }]));
    await expect(findStoredWeights(entries)).rejects.toThrow(/other.safetensors.*weight.quant_map is not that of NF4/);
    file.close();
  });
});

/** As bitsandbytes does without double quantisation, or in 8 bits; what is not quantised as it is. */
async function writeLikeBitsandbytes(model: CausalLM, path: string): Promise<void> {
  const tensors = new Map<string, Tensor>();
  for (const [name, parameter] of model.namedParameters()) {
    const layout = parameter.quantized;
    if (!layout) {
      tensors.set(name, parameter.detach());
      continue;
    }
    const stored = parameter.materialize();
    const part = (at: number, shape: number[], dtype: 'uint8' | 'float32'): Tensor => {
      const bytes = stored.slice(at, [shape[0]! * (shape[1] ?? 1) * (dtype === 'uint8' ? 1 : 4)]);
      if (dtype === 'uint8') return bytes.view(shape);
      return Tensor.from(new Float32Array(bits(bytes).buffer), shape);
    };
    if (layout.storage === 'int8') {
      tensors.set(name, part(0, [...parameter.shape], 'uint8'));
      tensors.set(name.replace(/weight$/, 'SCB'), part(layout.scalesAt, [parameter.size(0)], 'float32'));
      continue;
    }
    const state = { quant_type: 'nf4', blocksize: 64, dtype: 'float32', shape: parameter.shape };
    const text = new TextEncoder().encode(JSON.stringify(state));
    tensors.set(name, part(0, [layout.numel / 2, 1], 'uint8'));
    tensors.set(`${name}.absmax`, part(layout.scalesAt, [layout.numel / 64], 'float32'));
    tensors.set(`${name}.quant_map`, reference.get('code')!);
    tensors.set(`${name}.quant_state.bitsandbytes__nf4`, Tensor.from(text, [text.length], { dtype: 'uint8' }));
  }
  await saveSafetensors(path, tensors);
}
