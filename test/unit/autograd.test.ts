// Autograd: every function's gradient against central differences, and the rules of the graph.
import { describe, expect, it } from 'vitest';
import { gelu, packedSwiglu, swiglu } from '../../src/autograd/functions/activation.ts';
import { add, scale } from '../../src/autograd/functions/arithmetic.ts';
import { attention, packedAttention, qkvAttention } from '../../src/autograd/functions/attention.ts';
import { crossEntropy, linearCrossEntropy } from '../../src/autograd/functions/cross_entropy.ts';
import { embedding } from '../../src/autograd/functions/embedding.ts';
import { layerNorm } from '../../src/autograd/functions/layer_norm.ts';
import { linear } from '../../src/autograd/functions/linear.ts';
import { rmsNorm } from '../../src/autograd/functions/rms_norm.ts';
import { rope, ropeTable } from '../../src/autograd/functions/rope.ts';
import { gradCheck } from '../../src/autograd/grad_check.ts';
import { native } from '../../src/native.ts';
import { noGrad } from '../../src/tensor/grad_mode.ts';
import { numelOf, type Shape, Tensor } from '../../src/tensor/tensor.ts';

let state = 1;
const random = (): number => {
  state = (state * 48271) % 2147483647;
  return (state / 2147483647) * 2 - 1;
};
const leaf = (shape: Shape): Tensor =>
  Tensor.from(Array.from({ length: numelOf(shape) }, random), shape, { requiresGrad: true });

describe('gradients', () => {
  it('add and scale', () => gradCheck((a, b) => add(scale(a, 3), b), [leaf([2, 3]), leaf([2, 3])]));
  it('a tensor used twice', () => gradCheck((a) => add(a, scale(a, 2)), [leaf([5])]));
  it('linear', () => gradCheck((x, w) => linear(x, w), [leaf([5, 7]), leaf([3, 7])]));
  it('linear with bias', () => gradCheck((x, w, b) => linear(x, w, b), [leaf([5, 7]), leaf([3, 7]), leaf([3])]));
  it('linear with a frozen weight', () => {
    const weight = leaf([3, 7]);
    weight.requiresGrad = false;
    const [x, b] = [leaf([5, 7]), leaf([3])];
    gradCheck((x, w, b) => linear(x, w, b), [x, weight, b]);
    linear(x, weight, b).backward(Tensor.full([5, 3], 1));
    expect(weight.grad).toBeUndefined();
  });
  it('rmsNorm', () => gradCheck((x, w) => rmsNorm(x, w, 1e-5), [leaf([4, 6]), leaf([6])]));
  it('layerNorm', () => gradCheck((x, w, b) => layerNorm(x, w, b, 1e-5), [leaf([4, 6]), leaf([6]), leaf([6])]));
  it('layerNorm with a frozen weight or bias', () => {
    for (const frozen of [1, 2]) {
      const inputs = [leaf([4, 6]), leaf([6]), leaf([6])];
      inputs[frozen]!.requiresGrad = false;
      gradCheck((x, w, b) => layerNorm(x, w, b, 1e-5), inputs);
      layerNorm(inputs[0]!, inputs[1]!, inputs[2]!, 1e-5).backward(Tensor.full([4, 6], 1));
      expect(inputs[frozen]!.grad).toBeUndefined();
    }
  });
  it('swiglu', () => gradCheck((a, b) => swiglu(a, b), [leaf([9]), leaf([9])]));
  it('swiglu of one projection', () => gradCheck((both) => packedSwiglu(both), [leaf([3, 10])]));
  it('gelu', () => gradCheck((a) => gelu(a), [leaf([9])]));
  it('gelu by tanh', () => gradCheck((a) => gelu(a, 'tanh'), [leaf([9])]));
  it('rope', () => {
    const table = ropeTable(Tensor.from([0, 1, 5], [3], { dtype: 'int64' }), Tensor.from([1, 0.1]));
    gradCheck((x) => rope(x, table, 2), [leaf([3, 12])]);
  });
  it('embedding', () => {
    const ids = Tensor.from([2, 0, 2], [3], { dtype: 'int64' });
    gradCheck((table) => embedding(ids, table), [leaf([4, 5])]);
  });
  it('attention, packed and with a window', () => {
    const cu = Tensor.from([0, 4, 11], [3], { dtype: 'int32' });
    for (const window of [0, 3]) {
      gradCheck(
        (q, k, v) => attention(q, k, v, cu, cu, { heads: 4, kvHeads: 2, headDim: 6, window }),
        [leaf([11, 24]), leaf([11, 12]), leaf([11, 12])],
      );
    }
  });
  it('attention of a fused projection, partly rotated', () => {
    const cu = Tensor.from([0, 4, 7], [3], { dtype: 'int32' });
    const table = ropeTable(Tensor.from([0, 1, 2, 3, 0, 1, 2], [7], { dtype: 'int64' }), Tensor.from([1, 0.1]));
    for (const window of [0, 2]) {
      gradCheck((qkv) => qkvAttention(qkv, table, cu, cu, { heads: 2, headDim: 6, window }), [leaf([7, 36])]);
    }
  });
  it('attention of a projection with all queries first, partly rotated', () => {
    const cu = Tensor.from([0, 4, 7], [3], { dtype: 'int32' });
    const table = ropeTable(Tensor.from([0, 1, 2, 3, 0, 1, 2], [7], { dtype: 'int64' }), Tensor.from([1, 0.1]));
    const shape = { heads: 4, kvHeads: 2, headDim: 6 };
    for (const window of [0, 2])
      gradCheck((qkv) => packedAttention(qkv, table, cu, cu, { ...shape, window }), [leaf([7, 48])]);
    // The parts are those of projections apart.
    const [q, k, v] = [leaf([7, 24]), leaf([7, 12]), leaf([7, 12])];
    const row = (tensor: Tensor, i: number): Float32Array =>
      (tensor.dataSync() as Float32Array).subarray(i * tensor.size(1), (i + 1) * tensor.size(1));
    const packed = Tensor.from(
      Float32Array.from(Array.from({ length: 7 }, (_, i) => [q, k, v].map((part) => [...row(part, i)])).flat(2)),
      [7, 48],
    );
    const apart = attention(rope(q, table, 4), rope(k, table, 2), v, cu, cu, shape);
    expect(packedAttention(packed, table, cu, cu, shape).dataSync()).toEqual(apart.dataSync());
  });
  it('cross entropy, by logits and by hidden states', () => {
    const labels = Tensor.from([1, -100, 3, 0], [4], { dtype: 'int64' });
    gradCheck((logits) => crossEntropy(logits, labels), [leaf([4, 5])]);
    gradCheck((x, w) => linearCrossEntropy(x, w, labels), [leaf([4, 6]), leaf([5, 6])]);
    gradCheck((x, w) => linearCrossEntropy(x, w, labels, 7), [leaf([4, 6]), leaf([5, 6])]);
  });
});

describe('graph', () => {
  it('accumulates into leaves until they are cleared', () => {
    const a = leaf([2]);
    scale(a, 2).backward(Tensor.from([1, 1]));
    scale(a, 3).backward(Tensor.from([1, 1]));
    expect([...(a.grad!.dataSync() as Float32Array)]).toEqual([5, 5]);
  });
  it('is freed by backward; a second one throws', () => {
    const out = scale(leaf([1]), 2);
    out.backward();
    expect(() => out.backward()).toThrow('second time');
  });
  it('wants a gradient for more than one element', () => {
    expect(() => scale(leaf([2]), 2).backward()).toThrow('one-element');
    expect(() => Tensor.from([1]).backward()).toThrow('does not require grad');
  });
  it('records nothing inside noGrad', () => {
    const out = noGrad(() => scale(leaf([1]), 2));
    expect(out.requiresGrad).toBe(false);
  });
  it('leaves no tensor behind', () => {
    const [x, w] = [leaf([4, 4]), leaf([4, 4])];
    const before = native.memoryStats().liveHandles;
    for (let i = 0; i < 10; i++) {
      const hidden = linear(x, w);
      const out = swiglu(hidden, hidden);
      out.backward(Tensor.full([4, 4], 1));
      for (const tensor of [hidden, out]) tensor.dispose();
      for (const tensor of [x, w]) {
        tensor.grad!.dispose();
        tensor.grad = undefined;
      }
    }
    // the ten seeds of backward are left to the finalizer
    expect(native.memoryStats().liveHandles - before).toBeLessThanOrEqual(10);
  });
});
