// The numeric self-test of `rankzero doctor`: small ops on this machine's kernels against the same values computed
// here in double precision. It finds a broken oneDNN, a miscompiled kernel or a wrong instruction set.
import type { Handle, NativeAddon } from '../native.ts';
import { type DType, dtypeNumber } from '../tensor/dtype.ts';

export interface SelfTestResult {
  name: string;
  /** Largest difference, relative to the largest value expected. */
  error: number;
  tolerance: number;
  ok: boolean;
  /** Set when the op threw. */
  failure?: string | undefined;
}

/** Values in (-1, 1), the same on every machine, exact in bfloat16. */
function values(count: number, seed: number): Float32Array {
  let state = seed;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return ((state >>> 24) - 128) / 128;
  });
}

const toBfloat16 = (x: Float32Array): Uint16Array => {
  const bits = new Uint32Array(x.buffer, x.byteOffset, x.length);
  return Uint16Array.from(bits, (b) => b >>> 16);
};

/** Tensors of one test; all are released at its end. */
class Bench {
  readonly #native: NativeAddon;
  readonly #handles: Handle[] = [];

  constructor(native: NativeAddon) {
    this.#native = native;
  }

  empty(numel: number, dtype: DType = 'float32'): Handle {
    const handle = this.#native.tensorEmpty(numel, dtypeNumber(dtype), 0);
    this.#handles.push(handle);
    return handle;
  }

  from(data: Float32Array, dtype: 'float32' | 'bfloat16' = 'float32'): Handle {
    const handle = this.empty(data.length, dtype);
    this.#native.tensorWrite(handle, dtype === 'float32' ? data : toBfloat16(data));
    return handle;
  }

  int32(...data: number[]): Handle {
    const handle = this.empty(data.length, 'int32');
    this.#native.tensorWrite(handle, Int32Array.from(data));
    return handle;
  }

  read(handle: Handle, numel: number): Float32Array {
    const out = new Float32Array(numel);
    this.#native.tensorRead(handle, out);
    return out;
  }

  release(): void {
    for (const handle of this.#handles) this.#native.tensorRelease(handle);
  }
}

/** A test returns what the kernels gave and what it should be. */
type Test = (native: NativeAddon, bench: Bench) => { got: Float32Array; wanted: ArrayLike<number> };

function linear(dtype: 'float32' | 'bfloat16'): Test {
  return (native, bench) => {
    const [rows, inside, out] = [33, 65, 47];
    const [x, w] = [values(rows * inside, 1), values(out * inside, 2)];
    const y = bench.empty(rows * out, dtype);
    native.linearForward(y, bench.from(x, dtype), bench.from(w, dtype), 0, 0, rows, inside, out);
    const wide = bench.empty(rows * out);
    native.copy(wide, y);
    const wanted = new Float64Array(rows * out);
    for (let r = 0; r < rows; r++) {
      for (let o = 0; o < out; o++) {
        for (let i = 0; i < inside; i++) wanted[r * out + o]! += x[r * inside + i]! * w[o * inside + i]!;
      }
    }
    return { got: bench.read(wide, rows * out), wanted };
  };
}

const rmsNorm: Test = (native, bench) => {
  const [rows, dim, eps] = [5, 70, 1e-6];
  const [x, w] = [values(rows * dim, 3), values(dim, 4)];
  const y = bench.empty(rows * dim);
  native.rmsNormForward(y, bench.empty(rows), bench.from(x), bench.from(w), rows, dim, eps);
  const wanted = Float64Array.from(x, (v, at) => {
    const row = x.subarray(at - (at % dim), at - (at % dim) + dim);
    const mean = row.reduce((sum, u) => sum + u * u, 0) / dim;
    return (v / Math.sqrt(mean + eps)) * w[at % dim]!;
  });
  return { got: bench.read(y, rows * dim), wanted };
};

const attention: Test = (native, bench) => {
  const [rows, heads, kvHeads, dim] = [9, 4, 2, 16];
  const scale = 1 / Math.sqrt(dim);
  const q = values(rows * heads * dim, 5);
  const [k, v] = [values(rows * kvHeads * dim, 6), values(rows * kvHeads * dim, 7)];
  const o = bench.empty(q.length);
  // Two sequences in one batch: rows 0-3 and 4-8 do not see each other.
  const cu = bench.int32(0, 4, rows);
  const operands = [bench.from(q), bench.from(k), bench.from(v)] as const;
  native.attentionForward(
    o,
    bench.empty(rows * heads),
    ...operands,
    cu,
    cu,
    rows,
    rows,
    2,
    heads,
    kvHeads,
    dim,
    0,
    scale,
  );
  const wanted = new Float64Array(q.length);
  for (let r = 0; r < rows; r++) {
    for (let h = 0; h < heads; h++) {
      const g = Math.floor((h * kvHeads) / heads);
      const weights: number[] = [];
      const from = r < 4 ? 0 : 4;
      for (let s = from; s <= r; s++) {
        let dot = 0;
        for (let d = 0; d < dim; d++) dot += q[(r * heads + h) * dim + d]! * k[(s * kvHeads + g) * dim + d]!;
        weights.push(Math.exp(dot * scale));
      }
      const total = weights.reduce((a, b) => a + b);
      weights.forEach((weight, i) => {
        for (let d = 0; d < dim; d++) {
          wanted[(r * heads + h) * dim + d]! += (weight / total) * v[((from + i) * kvHeads + g) * dim + d]!;
        }
      });
    }
  }
  return { got: bench.read(o, q.length), wanted };
};

const swiglu: Test = (native, bench) => {
  const [gate, up] = [values(101, 8), values(101, 9)];
  const y = bench.empty(101);
  native.swigluForward(y, bench.from(gate), bench.from(up));
  return { got: bench.read(y, 101), wanted: Float64Array.from(gate, (g, i) => (g / (1 + Math.exp(-g))) * up[i]!) };
};

const adamw: Test = (native, bench) => {
  const [param, grad] = [values(67, 10), values(67, 11)];
  const p = bench.from(param);
  const [m, v] = [bench.from(new Float32Array(67)), bench.from(new Float32Array(67))];
  native.adamw(p, bench.from(grad), m, v, 0, 0, 0, 0.01, 0.9, 0.999, 1e-8, 0.1, 1);
  // The first step: both bias corrections cancel the decay rates.
  const wanted = Float64Array.from(param, (x, i) => x * (1 - 0.001) - (0.01 * grad[i]!) / (Math.abs(grad[i]!) + 1e-8));
  return { got: bench.read(p, 67), wanted };
};

const tests: { name: string; tolerance: number; test: Test }[] = [
  { name: 'linear float32', tolerance: 1e-5, test: linear('float32') },
  { name: 'linear bfloat16', tolerance: 1e-2, test: linear('bfloat16') },
  { name: 'RMS norm', tolerance: 1e-5, test: rmsNorm },
  { name: 'attention', tolerance: 1e-5, test: attention },
  { name: 'SwiGLU', tolerance: 1e-5, test: swiglu },
  { name: 'AdamW', tolerance: 1e-5, test: adamw },
];

/** Runs every test; none throws. */
export function runSelfTest(native: NativeAddon): SelfTestResult[] {
  return tests.map(({ name, tolerance, test }) => {
    const bench = new Bench(native);
    try {
      const { got, wanted } = test(native, bench);
      const scale = Array.from(wanted).reduce((most, w) => Math.max(most, Math.abs(w)), 0);
      const error = got.reduce((worst, g, i) => Math.max(worst, Math.abs(g - wanted[i]!)), 0) / scale;
      return { name, error, tolerance, ok: error <= tolerance };
    } catch (error) {
      return { name, error: Number.NaN, tolerance, ok: false, failure: (error as Error).message };
    } finally {
      bench.release();
    }
  });
}
