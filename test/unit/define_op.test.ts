// Ops of a program's own: their gradients, their place in the graph, what they free, and what they say when they are wrong.
import { describe, expect, it } from 'vitest';
import {
  add,
  applyActivationCheckpointing,
  defineOp,
  gelu,
  gradCheck,
  type HostBackward,
  type HostForward,
  Linear,
  linear,
  Module,
  memoryStats,
  noGrad,
  type OpContext,
  Parameter,
  scale,
  scope,
  Tensor,
} from '../../src/index.ts';

const leaf = (values: number[], shape = [values.length]): Tensor => Tensor.from(values, shape, { requiresGrad: true });
const values = (tensor: Tensor | undefined): number[] => Array.from(tensor!.dataSync() as Float32Array);
const ones = (...shape: number[]): Tensor => Tensor.full(shape, 1);

// y = cap · tanh(x / cap), as Gemma 2 bounds its logits.
const softCap = defineOp<[x: Tensor, cap: number]>({
  name: 'soft_cap',
  hostForward({ output }, x: Float32Array, cap) {
    for (const [i, value] of x.entries()) output[i] = cap * Math.tanh(value / cap);
  },
  hostBackward({ gradOut, grads: [dx] }, x: Float32Array, cap) {
    for (const [i, value] of x.entries()) dx![i] = gradOut[i]! / Math.cosh(value / cap) ** 2;
  },
});

// x · w with w (dim) over the last dimension: two gradients, one of another shape than the result.
let ran: boolean[] = [];
const gated = defineOp<[x: Tensor, w: Tensor]>({
  name: 'gated',
  hostForward({ output }, x: Float32Array, w: Float32Array) {
    for (const [i, value] of x.entries()) output[i] = value * w[i % w.length]!;
  },
  hostBackward({ gradOut, grads: [dx, dw] }, x: Float32Array, w: Float32Array) {
    ran = [dx !== undefined, dw !== undefined];
    for (const [i, dy] of gradOut.entries()) {
      if (dx) dx[i] = dy * w[i % w.length]!;
      if (dw) dw[i % w.length]! += dy * x[i]!;
    }
  },
});

// x wᵀ + factor · x: from ops that exist. dw by a linear of transposed operands, which for one row is dyᵀ x.
const mixed = defineOp({
  name: 'mixed',
  forward(ctx: OpContext, x: Tensor, w: Tensor, factor: number) {
    ctx.save(x, w);
    ctx.values.factor = factor;
    return add(linear(x, w), scale(x, factor));
  },
  backward(ctx, dy) {
    const [x, w] = ctx.saved as [Tensor, Tensor];
    const dim = w.size(0);
    using column = dy.view([dim, 1]);
    using row = x.view([dim, 1]);
    const dw = ctx.needs[1] ? linear(column, row) : undefined;
    // w is symmetric in the tests
    return [add(linear(dy, w), scale(dy, ctx.values.factor as number)), dw, undefined];
  },
});
const symmetric = (): Tensor => leaf([0.5, -1, 2, -1, 0.25, 0.75, 2, 0.75, -0.5], [3, 3]);

describe('gradients', () => {
  it('of host kernels', () => {
    gradCheck((x) => softCap(x, 2), [leaf([-3, -0.5, 0, 0.1, 1, 4])]);
    gradCheck(gated, [leaf([1, 2, 3, -4, 5, -6], [2, 3]), leaf([0.5, -2, 3])]);
  });

  it('of ops that exist', () => {
    gradCheck((x) => mixed(x, symmetric(), 3), [leaf([1, -2, 0.5], [1, 3])]);
    gradCheck((w) => mixed(Tensor.from([1, -2, 0.5], [1, 3]), w, 3), [symmetric()]);
  });

  it('inside a graph, and of an input that is used twice', () => {
    gradCheck((x) => gated(gelu(softCap(x, 2)), x), [leaf([-3, 0.3, 1])]);
    const x = leaf([1, 2]);
    gated(x, x).backward(ones(2));
    expect(values(x.grad)).toEqual([2, 4]);
  });

  it('of one tensor returned twice, of the incoming one, and of a saved one', () => {
    const sum = defineOp({
      name: 'sum',
      forward: (ctx: OpContext, a: Tensor, b: Tensor, c: Tensor) => {
        ctx.save(c);
        return add(a, b);
      },
      backward: (ctx, dy) => [dy, dy, ctx.saved[0]],
    });
    const [a, b, c] = [leaf([1]), leaf([2]), leaf([7])];
    for (const _ of [1, 2]) sum(a, b, c).backward();
    expect([a, b, c].map((t) => values(t.grad)[0])).toEqual([2, 2, 14]);
    expect(values(c)).toEqual([7]);
  });

  it('a wrong backward is found', () => {
    const wrong = defineOp<[x: Tensor]>({
      name: 'wrong',
      hostForward({ output }, x: Float32Array) {
        output.set(x.map((value) => value * value));
      },
      hostBackward({ gradOut, grads: [dx] }, x: Float32Array) {
        dx!.set(x.map((value, i) => gradOut[i]! * value)); // and not 2 x
      },
    });
    expect(() => gradCheck(wrong, [leaf([0.5, 2])])).toThrow(
      /^gradCheck: the gradient of element 0 of input 1 is .*, but/,
    );
    const identity = defineOp({
      name: 'identity',
      forward: (_ctx: OpContext, x: Tensor) => scale(x, 1.1),
      backward: (_ctx, dy) => [dy],
    });
    expect(() => gradCheck(identity, [leaf([1, 2])])).toThrow('gradCheck');
    // nor is one that gives none
    expect(() => gradCheck(defineOp(silent), [leaf([1])])).toThrow('is 0, but differences give 1.08');
  });
});

const silent = {
  name: 'silent',
  forward: (_ctx: OpContext, x: Tensor): Tensor => scale(x, 2),
  backward: () => [undefined],
};

describe('in the graph', () => {
  it('only what is wanted is computed', () => {
    const x = Tensor.from([1, 2, 3]);
    const w = leaf([1, 1, 1]);
    gated(x, w).backward(ones(3));
    expect(ran).toEqual([false, true]);
    expect(values(w.grad)).toEqual([1, 2, 3]);
    expect(x.grad).toBeUndefined();
  });

  it('without a graph nothing is kept', () => {
    const seen: unknown[] = [];
    const op = defineOp({
      name: 'seen',
      forward(ctx: OpContext, x: Tensor) {
        ctx.save(x);
        seen.push([...ctx.needs], ctx.saved.length);
        return scale(x, 2);
      },
    });
    expect(op(Tensor.from([1])).requiresGrad).toBe(false);
    expect(noGrad(() => op(leaf([1]))).requiresGrad).toBe(false);
    expect(seen).toEqual([[false], 0, [false], 0]);
    expect(op(leaf([1])).requiresGrad).toBe(true);
    expect(seen.slice(4)).toEqual([[true], 1]);
  });

  it('an integer result requires no gradient', () => {
    const sign = defineOp({
      name: 'ids',
      forward: (ctx: OpContext, x: Tensor) => {
        ctx.save(x);
        return Tensor.from([3, 4], [2], { dtype: 'int64' });
      },
    });
    const out = sign(leaf([1, 2]));
    expect([out.dtype, out.requiresGrad, out.gradFn]).toEqual(['int64', false, undefined]);
  });

  it('an input as the result', () => {
    const reverse = defineOp({
      name: 'reverse_gradient',
      forward: (_ctx: OpContext, x: Tensor) => x,
      backward: (_ctx, dy) => [scale(dy, -1)],
    });
    const x = leaf([1, 2]);
    const y = reverse(x);
    expect(y).not.toBe(x);
    scale(y, 3).backward(ones(2));
    expect(values(x.grad)).toEqual([-3, -3]);
    expect(values(x)).toEqual([1, 2]);
  });

  it('shapes and dtypes of host kernels', () => {
    const shapes: unknown[] = [];
    const rowSums = defineOp<[x: Tensor, ids: Tensor, factor: number]>({
      name: 'row_sums',
      outputShape: ([x]) => [x![0]!],
      hostForward(kernel: HostForward, x: Float32Array, ids: BigInt64Array, factor) {
        shapes.push(kernel.shapes, ids[0]);
        const columns = x.length / kernel.output.length;
        for (const [i, value] of x.entries()) kernel.output[Math.floor(i / columns)]! += factor * value;
      },
      hostBackward(kernel: HostBackward, x: Float32Array, _ids: BigInt64Array, factor) {
        const columns = x.length / kernel.gradOut.length;
        kernel.grads[0]!.forEach((_, i, dx) => {
          dx[i] = factor * kernel.gradOut[Math.floor(i / columns)]!;
        });
      },
    });
    const x = Tensor.from([1, 2, 3, 4, 5, 6], [2, 3], { dtype: 'bfloat16', requiresGrad: true });
    const ids = Tensor.from([9n], [1], { dtype: 'int64' });
    const y = rowSums(x, ids, 2);
    expect([y.shape, y.dtype, values(y)]).toEqual([[2], 'bfloat16', [12, 30]]);
    expect(shapes).toEqual([[[2, 3], [1], undefined], 9n]);
    y.backward(Tensor.from([1, 2], [2], { dtype: 'bfloat16' }));
    expect([x.grad!.shape, x.grad!.dtype, values(x.grad)]).toEqual([[2, 3], 'bfloat16', [2, 2, 2, 4, 4, 4]]);
  });
});

describe('in models', () => {
  class Gated extends Module {
    readonly up: Linear = new Linear(3, 3);
    readonly w: Parameter = new Parameter([3], 'float32', { kind: 'constant', value: 2 });
    forward(x: Tensor): Tensor {
      return scope(() => add(x, gated(softCap(this.up.forward(x), 5), this.w)));
    }
  }
  const x = (): Tensor => Tensor.from([1, 2, 3, -4, 5, -6], [2, 3]);

  const gradientsOf = (model: Gated, forward: (x: Tensor) => Tensor, runs = 2): number[] => {
    for (let i = 0; i < runs; i++) scope(() => forward(x()).backward(ones(2, 3)));
    return [...values(model.w.grad), ...values(model.up.weight.grad)];
  };
  const model = (): Gated => {
    const made = new Gated();
    made.up.weight.copyFrom(Tensor.from([0.5, -1, 2, -1, 0.25, 0.75, 2, 0.75, -0.5], [3, 3]));
    return made;
  };
  it('gradients of parameters add up', () => {
    const [once, twice] = [model(), model()];
    const want = gradientsOf(once, (x) => once.forward(x), 1).map((value) => 2 * value);
    expect(gradientsOf(twice, (x) => twice.forward(x))).toEqual(want);
  });

  it('run again under activation checkpointing', () => {
    const [plain, checkpointed] = [model(), model()];
    applyActivationCheckpointing(checkpointed, (module) => module === checkpointed);
    const want = gradientsOf(plain, (x) => plain.forward(x));
    expect(gradientsOf(checkpointed, (x) => checkpointed.forward(x))).toEqual(want);
  });
});

describe('memory', () => {
  const clear = (...tensors: Tensor[]): void => {
    for (const tensor of tensors) {
      tensor.grad?.dispose();
      tensor.grad = undefined;
    }
  };

  it('nothing stays behind, after backward or without one', () => {
    const [x, w] = [leaf([1, -2, 0.5], [1, 3]), symmetric()];
    const gate = leaf([1, 2, 3]);
    const before = memoryStats();
    for (let i = 0; i < 5; i++) {
      scope(() => gated(softCap(mixed(x, w, 3), 2), gate).backward(Tensor.from([1, 1, 1], [1, 3])));
      clear(x, w, gate);
      scope(() => void noGrad(() => gated(softCap(mixed(x, w, 3), 2), gate)));
    }
    const after = memoryStats();
    expect([after.liveHandles, after.total]).toEqual([before.liveHandles, before.total]);
  });

  it('nothing stays behind after errors', () => {
    const x = leaf([1, 2]);
    const before = memoryStats().liveHandles;
    const fails = defineOp({
      name: 'fails',
      forward(ctx: OpContext, x: Tensor) {
        ctx.save(x, scale(x, 2));
        throw new Error('in forward');
      },
    });
    expect(() => scope(() => fails(x))).toThrow('in forward');
    const failsLater = defineOp({
      name: 'fails_later',
      forward: (ctx: OpContext, x: Tensor) => {
        ctx.save(x);
        return scale(x, 2);
      },
      backward(_ctx, dy) {
        scale(dy, 2);
        throw new Error('in backward');
      },
    });
    expect(() => scope(() => failsLater(x).backward(Tensor.from([1, 1])))).toThrow('in backward');
    expect(memoryStats().liveHandles).toBe(before);
  });
});

describe('errors name the op', () => {
  const x = (): Tensor => leaf([1, 2, 3, 4], [2, 2]);
  const op = (backward: (ctx: OpContext, dy: Tensor) => unknown, result: (x: Tensor) => unknown = (x) => scale(x, 2)) =>
    defineOp({
      name: 'mine',
      forward: (_ctx: OpContext, x: Tensor, _factor: number) => result(x) as Tensor,
      backward: backward as (ctx: OpContext, dy: Tensor) => Tensor[],
    });

  it.each([
    [undefined, 'undefined'],
    [[1], 'an array'],
    [Promise.resolve(), 'a promise'],
    [3, 'a value of type number'],
  ])('forward without a tensor (%s)', (result, text) => {
    expect(() =>
      op(
        () => [],
        () => result,
      )(x(), 1),
    ).toThrow(`[mine] forward must return a tensor but returned ${text}`);
  });

  it.each<[string, (dy: Tensor) => unknown, string]>([
    [
      'no array',
      (dy) => dy,
      '[mine] backward must return an array of 2 gradients, one for each argument (undefined where there is none), but returned a tensor',
    ],
    ['one too few', (dy) => [dy], 'but returned one of 1'],
    [
      'no tensor',
      () => [3, undefined],
      '[mine] the gradient of argument 1 must be a tensor but is a value of type number',
    ],
    [
      'another shape',
      (dy) => [dy.view([4]), undefined],
      '[mine] the gradient of argument 1 must have shape [2,2] but has [4]',
    ],
    [
      'another dtype',
      (dy) => [dy.to('bfloat16'), undefined],
      '[mine] the gradient of argument 1 must be float32 but is bfloat16',
    ],
  ])('a backward with %s', (_, backward, message) => {
    const input = x();
    const out = op((_ctx, dy) => backward(dy))(input, 1);
    expect(() => out.backward(ones(2, 2))).toThrow(message);
    expect(input.grad).toBeUndefined();
  });

  it('no backward, and no tensor for a kernel', () => {
    const forwardOnly = defineOp({ name: 'forward_only', forward: (_ctx: OpContext, x: Tensor) => scale(x, 2) });
    expect(() => forwardOnly(x()).backward(ones(2, 2))).toThrow('[forward_only] has no backward');
    const kernel = defineOp<[x: unknown]>({ name: 'kernel', hostForward: () => {} });
    expect(() => kernel(x() as unknown).requiresGrad).not.toThrow();
    expect(() => (kernel(x()) as Tensor).backward(ones(2, 2))).toThrow('[kernel] has no hostBackward');
    expect(() => kernel(3)).toThrow('[kernel] wants a floating tensor among its arguments');
  });
});
