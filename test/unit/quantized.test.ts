// Weights of few bits: sums in PyTorch's order, 8-bit rows, and GEMMs that widen them by tiles.
import { describe, expect, it } from 'vitest';
import { quantize } from '../../src/adapt/quantize.ts';
import { NONE, native } from '../../src/native.ts';
import { Linear } from '../../src/nn/layers.ts';
import { QuantizedLayout, type QuantizedStorage } from '../../src/tensor/quantized.ts';
import { manualSeed } from '../../src/tensor/random.ts';
import { Tensor } from '../../src/tensor/tensor.ts';

function random(shape: readonly number[], name: string, std = 1): Tensor {
  const x = Tensor.empty(shape);
  native.randomFill(x.handle, 7n, name, 0, true, 0, std);
  return x;
}

function quantise(weight: Tensor, storage: QuantizedStorage): { q: Tensor; layout: QuantizedLayout } {
  const layout = QuantizedLayout.whole(storage, [weight.size(0), weight.size(1)]);
  const q = Tensor.empty([layout.bytes], 'uint8');
  native.quantizeWeight(q.handle, weight.handle, ...layout.operands);
  return { q, layout };
}

const bytesOf = (tensor: Tensor): Uint8Array => new Uint8Array(tensor.dataSync().buffer);

const sameBytes = (a: Tensor, b: Tensor): boolean => Buffer.compare(bytesOf(a), bytesOf(b)) === 0;

describe.each<QuantizedStorage>(['nf4', 'nf4-double', 'int8'])('a linear with a weight in %s', (storage) => {
  it.each([
    ['float32', 3, 40, 24],
    ['float32', 1, 512, 1100],
    ['float32', 130, 96, 257],
    ['float32', 64, 2048, 1088],
    ['bfloat16', 5, 27, 19],
    ['bfloat16', 70, 1100, 700],
    ['bfloat16', 64, 2048, 1088],
    ['float16', 9, 1100, 1300],
  ] as const)('has the bits of one with what it stands for: %s, %i rows, %i to %i', (dtype, rows, inFeatures, out) => {
    manualSeed(1);
    const { q, layout } = quantise(random([out, inFeatures], 'w', 0.05), storage);
    const w = Tensor.empty([out, inFeatures], dtype);
    native.dequantizeWeight(w.handle, q.handle, ...layout.operands);
    const x = random([rows, inFeatures], 'x').to(dtype);
    const dy = random([rows, out], 'dy').to(dtype);
    const bias = random([out], 'b').to(dtype);
    const sizes = [rows, inFeatures, out] as const;
    for (const b of [NONE, bias.handle]) {
      const [y, want] = [0, 1].map(() => Tensor.empty([rows, out], dtype)) as [Tensor, Tensor];
      native.linearForward(want.handle, x.handle, w.handle, b, NONE, ...sizes);
      native.quantizedLinearForward(y.handle, x.handle, q.handle, b, NONE, ...sizes, ...layout.operands);
      expect(sameBytes(y, want)).toBe(true);
      native.linearForward(want.handle, x.handle, w.handle, b, dy.handle, ...sizes);
      native.quantizedLinearForward(y.handle, x.handle, q.handle, b, dy.handle, ...sizes, ...layout.operands);
      expect(sameBytes(y, want)).toBe(true);
    }
    const [dx, want] = [0, 1].map(() => Tensor.empty([rows, inFeatures], dtype)) as [Tensor, Tensor];
    for (const earlier of [NONE, x.handle]) {
      native.linearBackwardInput(want.handle, dy.handle, w.handle, earlier, ...sizes);
      native.quantizedLinearBackwardInput(dx.handle, dy.handle, q.handle, earlier, ...sizes, ...layout.operands);
      expect(sameBytes(dx, want)).toBe(true);
    }
  });
});

it('int8 is the nearest of 255 steps of the largest of a row', () => {
  const weight = random([5, 70], 'rows', 3);
  const { q, layout } = quantise(weight, 'int8');
  const bytes = bytesOf(q);
  const values = weight.dataSync() as Float32Array;
  for (let row = 0; row < 5; row++) {
    const own = values.subarray(row * 70, (row + 1) * 70);
    const absmax = own.reduce((top, x) => Math.max(top, Math.abs(x)), 0);
    expect(new Float32Array(bytes.buffer, layout.scalesAt, 5)[row]).toBe(absmax);
    const codes = new Int8Array(bytes.buffer, row * 70, 70);
    expect(Math.max(...codes.map(Math.abs))).toBe(127);
    for (const [i, code] of codes.entries())
      expect(Math.abs((own[i]! * 127) / absmax - code)).toBeLessThanOrEqual(0.5001);
  }
});

describe('a layer that is quantised', () => {
  function layers(): { model: Linear; same: Linear } {
    manualSeed(4);
    const [model, same] = [0, 1].map(() => new Linear(40, 24, { bias: true })) as [Linear, Linear];
    model.weight.materialize(); // the values exist already
    expect(quantize(model, { doubleQuant: false })).toEqual(['weight']);
    const w = Tensor.empty([24, 40]);
    native.dequantizeWeight(w.handle, model.weight.handle, ...model.weight.quantized!.operands);
    same.weight.copyFrom(w);
    same.weight.requiresGrad = false;
    return { model, same };
  }

  it('gives the gradients of one with what its weight stands for', () => {
    const { model, same } = layers();
    expect([model.weight.shape, model.weight.requiresGrad, model.weight.checkpointDtype]).toEqual([
      [24, 40],
      false,
      'float32',
    ]);
    const grads = [model, same].map((layer) => {
      const x = random([6, 40], 'input');
      x.requiresGrad = true;
      const dy = random([6, 24], 'dy');
      for (let twice = 0; twice < 2; twice++) layer.forward(x).backward(dy);
      expect(layer.weight.grad).toBeUndefined();
      return [x.grad!, layer.bias!.grad!];
    });
    expect(sameBytes(grads[0]![0]!, grads[1]![0]!)).toBe(true);
    expect(sameBytes(grads[0]![1]!, grads[1]![1]!)).toBe(true);
    expect((grads[0]![1]!.dataSync() as Float32Array).some((value) => value !== 0)).toBe(true);
  });

  it('says what to do where its elements are asked for', () => {
    const { model, same } = layers();
    const what = /^weight is quantised and .*: .* Save what is trained beside it/;
    model.assignParameterNames();
    expect(() => model.weight.dataSync()).toThrow(what);
    expect(() => model.weight.narrow(0, 1)).toThrow(what);
    expect(() => model.loadStateDict(same.stateDict())).toThrow(what);
    expect(() => model.weight.quantize('int8')).toThrow('weight [24,40] is quantised already');
    expect(() => quantize(model, { modules: () => false })).toThrow('no linear layer');
  });
});
