// Weights of few bits: sums in PyTorch's order, 8-bit rows, and GEMMs that widen them by tiles.
import { describe, expect, it } from 'vitest';
import { NONE, native } from '../../src/native.ts';
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
