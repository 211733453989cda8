// Batches without padding: examples laid one after the other, with their borders.
import type { TokenDataset } from './dataset.ts';

/** Labels with this value have no loss. */
export const ignoreIndex = -100;

/** What one forward pass of one rank gets. */
export interface Batch {
  /** (numTokens) */
  readonly inputIds: BigInt64Array;
  /** (numTokens) −100 or the token's own id: the model shifts. The first of each example is −100. */
  readonly labels: BigInt64Array;
  /** (numTokens) from 0 in each example. */
  readonly positionIds: BigInt64Array;
  /** (examples + 1) borders of examples; attention does not cross them. */
  readonly cuSeqlens: Int32Array;
  readonly numTokens: number;
  /** Examples of the data set: 0 in a filler. */
  readonly numExamples: number;
  /** The number of each example in the step's batch of all ranks and passes. */
  readonly examples: readonly number[];
}

/** Little-endian 32-bit halves of int64: BigInt arithmetic for each token would cost more than the rest. */
class Int64Writer {
  readonly array: BigInt64Array;
  readonly #words: Int32Array;
  constructor(length: number) {
    this.array = new BigInt64Array(length);
    this.#words = new Int32Array(this.array.buffer);
  }
  set(i: number, value: number): void {
    this.#words[2 * i] = value;
    this.#words[2 * i + 1] = value < 0 ? -1 : 0;
  }
}

/** Lays examples out in a batch. `numbers`: of each in the step's batch of all ranks and passes; default 0, 1, … */
export function makeBatch(
  dataset: TokenDataset,
  examples: readonly number[],
  numbers: readonly number[] = [...examples.keys()],
): Batch {
  return layOut(
    examples.map((i) => ({ tokens: dataset.tokens(i), mask: dataset.mask(i) })),
    numbers,
  );
}

/**
 * A batch without labels for a rank that has no examples left in the last step of an epoch: it must still run forward
 * and backward, since the other ranks wait for it in the collectives.
 */
export function fillerBatch(dataset: TokenDataset): Batch {
  const tokens = dataset.tokens(0).subarray(0, 8);
  return layOut([{ tokens, mask: new Uint8Array(tokens.length) }], []);
}

function layOut(examples: readonly { tokens: Int32Array; mask: Uint8Array }[], numbers: readonly number[]): Batch {
  const numTokens = examples.reduce((sum, { tokens }) => sum + tokens.length, 0);
  const inputIds = new Int64Writer(numTokens);
  const labels = new Int64Writer(numTokens);
  const positionIds = new Int64Writer(numTokens);
  const cuSeqlens = new Int32Array(examples.length + 1);
  let at = 0;
  examples.forEach(({ tokens, mask }, e) => {
    for (let i = 0; i < tokens.length; i++, at++) {
      const judged = i > 0 && mask[i] === 1;
      inputIds.set(at, tokens[i]!);
      labels.set(at, judged ? tokens[i]! : ignoreIndex);
      positionIds.set(at, i);
    }
    cuSeqlens[e + 1] = at;
  });
  return {
    inputIds: inputIds.array,
    labels: labels.array,
    positionIds: positionIds.array,
    cuSeqlens,
    numTokens,
    numExamples: numbers.length,
    examples: numbers,
  };
}
