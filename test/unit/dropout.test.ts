// Dropout: what is dropped depends on seed, step, place, example, position and column alone.
import { describe, expect, it } from 'vitest';
import { dropout } from '../../src/autograd/functions/dropout.ts';
import { gradCheck } from '../../src/autograd/grad_check.ts';
import { type RandomnessOptions, withRandomness } from '../../src/autograd/randomness.ts';
import { Dropout } from '../../src/nn/dropout.ts';
import { Linear } from '../../src/nn/layers.ts';
import { Module } from '../../src/nn/module.ts';
import { applyActivationCheckpointing } from '../../src/parallel/checkpointing.ts';
import { Tensor } from '../../src/tensor/tensor.ts';

const ones = (rows: number, columns: number): Tensor => Tensor.full([rows, columns], 1);

/** What is left of ones. */
function mask(
  rows: number,
  columns: number,
  options: Partial<RandomnessOptions> & { name?: string; p?: number } = {},
): number[] {
  const { name = 'here', p = 0.25, ...randomness } = options;
  return withRandomness({ step: 0, seed: 7, cuSeqlens: [0, rows], ...randomness }, () =>
    Array.from(dropout(ones(rows, columns), p, name).dataSync(), Number),
  );
}

describe('dropout', () => {
  it('drops a share of p, and keeps the mean', () => {
    for (const p of [0.1, 0.5, 0.9]) {
      const values = mask(400, 501, { p });
      const dropped = values.filter((x) => x === 0).length / values.length;
      expect(Math.abs(dropped - p)).toBeLessThan(4 * Math.sqrt((p * (1 - p)) / values.length));
      expect(new Set(values)).toEqual(new Set([0, Math.fround(1 / Math.fround(1 - Math.fround(p)))]));
    }
    expect(new Set(mask(10, 10, { p: 1 }))).toEqual(new Set([0]));
  });

  it('draws others for another seed, step, place, example and position', () => {
    const first = mask(8, 64);
    expect(mask(8, 64)).toEqual(first);
    expect(mask(8, 64, { seed: 8 })).not.toEqual(first);
    expect(mask(8, 64, { step: 1 })).not.toEqual(first);
    expect(mask(8, 64, { name: 'there' })).not.toEqual(first);
    expect(mask(8, 64, { examples: [1] })).not.toEqual(first);
    const rows = Array.from({ length: 8 }, (_, r) => first.slice(64 * r, 64 * r + 64).join());
    expect(new Set(rows).size).toBe(8);
  });

  it('draws for an example what it draws in any batch', () => {
    const [a, b] = [mask(3, 33, { examples: [5] }), mask(4, 33, { examples: [(1 << 22) - 2] })];
    expect(mask(7, 33, { cuSeqlens: [0, 3, 7], examples: [5, (1 << 22) - 2] })).toEqual([...a, ...b]);
    expect(mask(7, 33, { cuSeqlens: [0, 4, 7], examples: [(1 << 22) - 2, 5] })).toEqual([...b, ...a]);
  });

  it('draws for a part of rows or columns what the whole draws', () => {
    const whole = mask(6, 90);
    const draws = (rows: number, columns: number, part: number, all: number): number[] =>
      withRandomness({ step: 0, seed: 7, cuSeqlens: [0, 6] }, () =>
        Array.from(dropout(ones(rows, columns), 0.25, 'here', { part, columns: all }).dataSync(), Number),
      );
    expect([0, 1, 2].flatMap((part) => draws(2, 90, part, 90))).toEqual(whole);
    for (const part of [0, 1])
      for (let row = 0; row < 6; row++)
        expect(draws(6, 45, part, 90).slice(45 * row, 45 * row + 45)).toEqual(
          whole.slice(90 * row + 45 * part, 90 * row + 45 * part + 45),
        );
  });

  it('has the gradient of what it kept', async () => {
    const x = Tensor.from(
      Array.from({ length: 60 }, (_, i) => Math.sin(i)),
      [6, 10],
      { requiresGrad: true },
    );
    await withRandomness({ step: 3, seed: 1, cuSeqlens: [0, 6] }, () =>
      gradCheck((input) => dropout(input as Tensor, 0.5, 'here'), [x]),
    );
  });

  it('is no op with p = 0, and none in evaluation', () => {
    const x = ones(2, 3);
    expect(dropout(x, 0, 'here')).toBe(x);
    const module = new Dropout(0.5, { name: 'here' });
    expect(module.eval().forward(x)).toBe(x);
    expect(new Dropout(0, { name: 'here' }).forward(x)).toBe(x);
    expect(() => module.train().forward(x)).toThrow(/dropout \(here\) does not know what to draw by/);
    expect(() => new Dropout(0.5).forward(x)).toThrow(/has no name to draw by/);
    expect(() => new Dropout(1.5)).toThrow(/p must be from 0 to 1/);
    expect(() => mask(2, 3, { cuSeqlens: [0, 5] })).toThrow(/\[2,3\] is no part of the 5 rows/);
  });
});

class Block extends Module {
  readonly proj: Linear = new Linear(16, 16);
  readonly drop: Dropout = new Dropout(0.5);

  forward(x: Tensor): Tensor {
    return this.drop.forward(this.proj.forward(x));
  }
}

it('a module that runs again in backward drops the same, outside of withRandomness too', () => {
  const run = (checkpoints: boolean): number[][] => {
    const block = new Block();
    block.assignParameterNames();
    if (checkpoints) expect(applyActivationCheckpointing(block, (module) => module === block)).toBe(1);
    const x = Tensor.from(
      Array.from({ length: 64 }, (_, i) => Math.cos(i)),
      [4, 16],
      { requiresGrad: true },
    );
    const y = withRandomness({ step: 2, seed: 9, cuSeqlens: [0, 4] }, () => block.forward(x));
    y.backward(
      Tensor.from(
        Array.from({ length: 64 }, (_, i) => i / 64),
        [4, 16],
      ),
    );
    return [y, x.grad!, block.proj.weight.grad!].map((tensor) => Array.from(tensor.dataSync(), Number));
  };
  const plain = run(false);
  expect(plain[0]!.filter((value) => value === 0).length).toBeGreaterThan(15);
  expect(run(true)).toEqual(plain);
});
