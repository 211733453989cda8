// The order of data: a permutation that depends on seed and epoch alone, and its division over data-parallel ranks.

/** A generator of 32-bit numbers (xoshiro128**), keyed by seed and stream. */
function random32(seed: number, stream: number): () => number {
  let mix = (Math.floor(seed / 2 ** 32) ^ Math.imul(seed >>> 0, 0x9e3779b1) ^ Math.imul(stream + 1, 0x85ebca6b)) >>> 0;
  const next = () => {
    mix = (mix + 0x9e3779b9) >>> 0; // splitmix32 fills the state
    let z = mix;
    z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return (z ^ (z >>> 15)) >>> 0;
  };
  let [a, b, c, d] = [next(), next(), next(), next() | 1];
  return () => {
    const x = Math.imul(b, 5);
    const result = Math.imul((x << 7) | (x >>> 25), 9) >>> 0;
    const t = b << 9;
    c ^= a;
    d ^= b;
    b ^= c;
    a ^= d;
    c ^= t;
    d = (d << 11) | (d >>> 21);
    return result;
  };
}

/** 0 … n-1, shuffled. The same for every world size, machine and Node version. */
export function permutation(n: number, seed: number, epoch: number): Uint32Array {
  if (!Number.isSafeInteger(seed)) throw new RangeError(`the seed must be a whole number, got ${seed}`);
  const order = Uint32Array.from({ length: n }, (_, i) => i);
  const random = random32(seed, epoch);
  for (let i = n - 1; i > 0; i--) {
    const j = Math.floor((random() / 2 ** 32) * (i + 1));
    const swap = order[i]!;
    order[i] = order[j]!;
    order[j] = swap;
  }
  return order;
}

/**
 * One rank's part of a global batch, as micro-batches of at most `batchSize`. Items go to ranks in turn. Every rank
 * gets the same number of micro-batches; in an incomplete global batch the last ones may be short or empty.
 */
export function splitGlobalBatch<T>(items: readonly T[], dpRank: number, dpSize: number, batchSize: number): T[][] {
  const mine = items.filter((_, i) => i % dpSize === dpRank);
  const most = Math.ceil(items.length / dpSize);
  const count = Math.ceil(most / batchSize);
  return Array.from({ length: count }, (_, m) => mine.slice(m * batchSize, (m + 1) * batchSize));
}
