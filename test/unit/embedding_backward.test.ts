// FSDP gathers an embedding for its forward alone, but one that a program made its own for backward too.
import { expect, test } from 'vitest';
import { linear } from '../../src/autograd/functions/linear.ts';
import { Embedding, Linear } from '../../src/nn/layers.ts';
import type { Tensor } from '../../src/tensor/tensor.ts';

class Projection extends Embedding {
  override forward(x: Tensor): Tensor {
    return linear(x, this.weight);
  }
}

test('backward reads the parameters of all modules but lookups', () => {
  expect(new Linear(2, 3).backwardReadsParameters).toBe(true);
  expect(new Embedding(3, 2).backwardReadsParameters).toBe(false);
  expect(new Projection(3, 2).backwardReadsParameters).toBe(true);
});
