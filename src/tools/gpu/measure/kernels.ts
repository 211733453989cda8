// Kernels that move bytes and compute little, as a share of the bandwidth of a copy. Bytes are the fewest that must move: each
// input read once, each output written once. Sets of operands take turns, so that none is in the cache.
import { type Handle, native } from '../../../native.ts';
import type { PartOptions, Unit, UnitResult } from '../part.ts';
import { type Operands, withOperands } from './operands.ts';
import { medianTime } from './timing.ts';

interface Kernel {
  /** Bytes of one call. */
  bytes: number;
  run: () => void;
}

/** Makes one set of operands and a call on them; sizes are (rows, dim) of a batch. */
type Maker = (operands: Operands, rows: number, dim: number) => Kernel;

const half = 2;
const float = 4;

const kernels: Record<string, Maker> = {
  rms_norm_forward(o, rows, dim) {
    const [y, rstd, x, w] = [o.empty(rows * dim), o.empty(rows, 'float32'), o.normal(rows * dim), o.normal(dim)];
    return {
      bytes: half * 2 * rows * dim + float * rows,
      run: () => native.rmsNormForward(y, rstd, x, w, rows, dim, 1e-5),
    };
  },
  rms_norm_backward(o, rows, dim) {
    const [dx, dw, dy, x] = [o.empty(rows * dim), o.empty(dim, 'float32'), o.normal(rows * dim), o.normal(rows * dim)];
    const [w, rstd] = [o.normal(dim), o.uniform(rows, 'float32', 0.5, 2)];
    return {
      bytes: half * 3 * rows * dim,
      run: () => native.rmsNormBackward(dx, dw, dy, x, w, rstd, 0, rows, dim, false),
    };
  },
  layer_norm_forward(o, rows, dim) {
    const [y, mean, rstd] = [o.empty(rows * dim), o.empty(rows, 'float32'), o.empty(rows, 'float32')];
    const [x, w, b] = [o.normal(rows * dim), o.normal(dim), o.normal(dim)];
    return {
      bytes: half * 2 * rows * dim,
      run: () => native.layerNormForward(y, mean, rstd, x, w, b, rows, dim, 1e-5),
    };
  },
  layer_norm_backward(o, rows, dim) {
    const [dx, dw, db] = [o.empty(rows * dim), o.empty(dim, 'float32'), o.empty(dim, 'float32')];
    const [dy, x, w] = [o.normal(rows * dim), o.normal(rows * dim), o.normal(dim)];
    const [mean, rstd] = [o.normal(rows, 'float32', 0.1), o.uniform(rows, 'float32', 0.5, 2)];
    return {
      bytes: half * 3 * rows * dim,
      run: () => native.layerNormBackward(dx, dw, db, dy, x, w, mean, rstd, rows, dim, false, false),
    };
  },
  rope(o, rows, dim) {
    const headDim = 64;
    const [y, x] = [o.empty(rows * dim), o.normal(rows * dim)];
    const [cos, sin] = [o.uniform((rows * headDim) / 2), o.uniform((rows * headDim) / 2)];
    return {
      bytes: half * 2 * rows * dim + float * rows * headDim,
      run: () => native.rope(y, x, cos, sin, rows, dim / headDim, headDim, headDim, false),
    };
  },
  split_rope: (o, rows, dim) => turnedParts(o, rows, dim, native.splitRope),
  merge_rope: (o, rows, dim) =>
    turnedParts(o, rows, dim, (q, k, v, qkv, ...rest) => native.mergeRope(qkv, q, k, v, ...rest)),
  split_qkv(o, rows, dim) {
    const headDim = 64;
    const [q, k, v, qkv] = [o.empty(rows * dim), o.empty(rows * dim), o.empty(rows * dim), o.normal(3 * rows * dim)];
    return { bytes: half * 6 * rows * dim, run: () => native.splitQkv(q, k, v, qkv, rows, dim / headDim, headDim) };
  },
  merge_qkv(o, rows, dim) {
    const headDim = 64;
    const [qkv, q, k, v] = [o.empty(3 * rows * dim), o.normal(rows * dim), o.normal(rows * dim), o.normal(rows * dim)];
    return { bytes: half * 6 * rows * dim, run: () => native.mergeQkv(qkv, q, k, v, rows, dim / headDim, headDim) };
  },
  swiglu_forward(o, rows, dim) {
    const [y, gate, up] = [o.empty(4 * rows * dim), o.normal(4 * rows * dim), o.normal(4 * rows * dim)];
    return { bytes: half * 12 * rows * dim, run: () => native.swigluForward(y, gate, up) };
  },
  swiglu_backward(o, rows, dim) {
    const [dGate, dUp] = [o.empty(4 * rows * dim), o.empty(4 * rows * dim)];
    const [dy, gate, up] = [o.normal(4 * rows * dim), o.normal(4 * rows * dim), o.normal(4 * rows * dim)];
    return { bytes: half * 20 * rows * dim, run: () => native.swigluBackward(dGate, dUp, dy, gate, up) };
  },
  packed_swiglu_forward(o, rows, dim) {
    const [y, gateUp] = [o.empty(4 * rows * dim), o.normal(8 * rows * dim)];
    return { bytes: half * 12 * rows * dim, run: () => native.packedSwigluForward(y, gateUp, rows, 4 * dim) };
  },
  packed_swiglu_backward(o, rows, dim) {
    const [dGateUp, dy, gateUp] = [o.empty(8 * rows * dim), o.normal(4 * rows * dim), o.normal(8 * rows * dim)];
    return {
      bytes: half * 20 * rows * dim,
      run: () => native.packedSwigluBackward(dGateUp, dy, gateUp, rows, 4 * dim),
    };
  },
  gelu_forward(o, rows, dim) {
    const [y, x] = [o.empty(4 * rows * dim), o.normal(4 * rows * dim)];
    return { bytes: half * 8 * rows * dim, run: () => native.geluForward(y, x, true) };
  },
  gelu_backward(o, rows, dim) {
    const [dx, dy, x] = [o.empty(4 * rows * dim), o.normal(4 * rows * dim), o.normal(4 * rows * dim)];
    return { bytes: half * 12 * rows * dim, run: () => native.geluBackward(dx, dy, x, true) };
  },
  embedding_forward(o, rows, dim) {
    const vocab = 4 * rows;
    const [out, table] = [o.empty(rows * dim), o.normal(vocab * dim)];
    const ids = o.int64(rows, (i) => (i * 7919) % vocab);
    return {
      bytes: half * 2 * rows * dim + 8 * rows,
      run: () => native.embeddingForward(out, ids, table, rows, vocab, dim, 0),
    };
  },
  embedding_backward(o, rows, dim) {
    const vocab = 4 * rows;
    const [table, dOut] = [o.empty(vocab * dim, 'float32'), o.normal(rows * dim)];
    const ids = o.int64(rows, (i) => (i * 7919) % vocab);
    // The table is zeroed, then a quarter of it is written.
    return {
      bytes: (half + float) * rows * dim + float * vocab * dim,
      run: () => native.embeddingBackward(table, ids, dOut, rows, vocab, dim, 0, false),
    };
  },
  cross_entropy(o, rows, dim) {
    const vocab = 16 * dim;
    const count = Math.max(1, rows / 16);
    const [loss, dLogits, logits] = [
      o.empty(1, 'float32'),
      o.empty(count * vocab, 'float32'),
      o.normal(count * vocab, 'float32'),
    ];
    const labels = o.int64(count, (i) => (i * 7919) % vocab);
    return {
      bytes: float * 2 * count * vocab,
      run: () => native.crossEntropy(loss, dLogits, logits, labels, count, vocab, 0),
    };
  },
  adamw(o, rows, dim) {
    const numel = 2 * rows * dim;
    const [param, grad, m, v] = [
      o.normal(numel, 'float32'),
      o.normal(numel, 'float32'),
      o.normal(numel, 'float32', 0.1),
      o.uniform(numel),
    ];
    const copy = o.empty(numel);
    return {
      bytes: numel * (7 * float + half),
      run: () => native.adamw(param, grad, m, v, 0, 0, copy, 1e-4, 0.9, 0.999, 1e-8, 0.1, 3),
    };
  },
  add(o, rows, dim) {
    const [y, a, b] = [o.empty(4 * rows * dim), o.normal(4 * rows * dim), o.normal(4 * rows * dim)];
    return { bytes: half * 12 * rows * dim, run: () => native.add(y, a, b) };
  },
  scale(o, rows, dim) {
    const [y, x] = [o.empty(4 * rows * dim), o.normal(4 * rows * dim)];
    return { bytes: half * 8 * rows * dim, run: () => native.scale(y, x, 0, 0.5, false) };
  },
  'copy, float32 to bfloat16'(o, rows, dim) {
    const [y, x] = [o.empty(4 * rows * dim), o.normal(4 * rows * dim, 'float32')];
    return { bytes: (half + float) * 4 * rows * dim, run: () => native.copy(y, x) };
  },
  copy_rows(o, rows, dim) {
    const [y, x] = [o.empty(rows * dim), o.normal(2 * rows * dim)];
    return { bytes: half * 2 * rows * dim, run: () => native.copyRows(y, x, rows, dim, 0, dim, 0, 2 * dim) };
  },
  'sum_squares of bfloat16'(o, rows, dim) {
    const [sum, x] = [o.empty(1, 'float32'), o.normal(8 * rows * dim)];
    return { bytes: half * 8 * rows * dim, run: () => native.sumSquares(sum, x, false) };
  },
  'random_fill, normal'(o, rows, dim) {
    const x: Handle = o.empty(8 * rows * dim);
    return { bytes: half * 8 * rows * dim, run: () => native.randomFill(x, 1n, 'x', 0, true, 0, 1) };
  },
};

/** A key and a value head for four heads. Both ways move the same bytes. */
function turnedParts(o: Operands, rows: number, dim: number, run: typeof native.splitRope): Kernel {
  const headDim = 64;
  const heads = dim / headDim;
  const kvHeads = Math.max(1, heads / 4);
  const narrow = kvHeads * headDim;
  const [q, k, v] = [o.normal(rows * dim), o.normal(rows * narrow), o.normal(rows * narrow)];
  const qkv = o.normal(rows * (dim + 2 * narrow));
  const [cos, sin] = [o.uniform((rows * headDim) / 2), o.uniform((rows * headDim) / 2)];
  return {
    bytes: half * 2 * rows * (dim + 2 * narrow) + float * rows * headDim,
    run: () => run(q, k, v, qkv, cos, sin, rows, heads, kvHeads, headDim, headDim),
  };
}

export async function kernelUnits(options: PartOptions): Promise<Unit[]> {
  return Object.entries(kernels).map(([name, make]) => ({ name, run: () => measure(name, make, options) }));
}

function measure(name: string, make: Maker, { seed, size, copyBandwidth }: PartOptions): UnitResult {
  const [rows, dim] = size === 'small' ? [16, 64] : [16_384, 2048];
  const numSets = size === 'small' ? 2 : 4; // each at least 128 MB: more than twice the caches there are
  return withOperands(seed, (operands) => {
    const sets = Array.from({ length: numSets }, () => make(operands, rows!, dim!));
    const { milliseconds, spread } = medianTime(
      sets.map(({ run }) => run),
      { samples: size === 'small' ? 2 : 30 },
    );
    const value = sets[0]!.bytes / milliseconds / 1e6;
    const known = copyBandwidth ? { fraction: value / copyBandwidth, of: 'copy' } : {};
    return { unit: name, failures: [], measures: [{ name, value, unit: 'GB/s', milliseconds, spread, ...known }] };
  });
}
