// Fresh random inputs. Every check draws its own; a seed repeats them.
import { native } from '../../native.ts';
import { dtypeNumber } from '../../tensor/dtype.ts';

export type Size = 'small' | 'full';

export class Draw {
  readonly #seed: bigint;
  readonly size: Size;
  #count = 0;

  constructor(seed: number, key: string, size: Size) {
    this.#seed = BigInt(seed);
    this.key = key;
    this.size = size;
  }

  readonly key: string;

  normal(count: number, std = 1): Float32Array {
    return this.#fill(count, true, 0, std);
  }

  uniform(count: number, from = 0, to = 1): Float32Array {
    return this.#fill(count, false, from, to);
  }

  /** Whole numbers from `from` up to and without `to`. */
  integers(count: number, from: number, to: number): number[] {
    return Array.from(this.uniform(count, from, to), (x) => Math.min(to - 1, Math.floor(x)));
  }

  int64(count: number, from: number, to: number): BigInt64Array {
    return BigInt64Array.from(this.integers(count, from, to), BigInt);
  }

  /** Token ids below `vocab`; about one in eight is −100, the label that is ignored. */
  labels(count: number, vocab: number): BigInt64Array {
    const ignored = this.uniform(count);
    return this.int64(count, 0, vocab).map((label, i) => (ignored[i]! < 0.125 && i > 0 ? -100n : label));
  }

  /** Borders of `sequences` packed sequences over `rows`, each with at least one row. */
  borders(rows: number, sequences: number): Int32Array {
    const inner = new Set<number>();
    while (inner.size < sequences - 1) inner.add(this.integers(1, 1, rows)[0]!);
    return Int32Array.from([0, ...[...inner].sort((a, b) => a - b), rows]);
  }

  /** Of the sizes of an op, those to check: a spread of small ones, and on a device of full size those that fill it too. */
  sizes<T>(small: readonly T[], more: readonly T[]): T[] {
    return this.size === 'small' ? [...small] : [...small, ...more];
  }

  #fill(count: number, normal: boolean, a: number, b: number): Float32Array {
    const values = new Float32Array(count);
    const handle = native.tensorEmpty(count, dtypeNumber('float32'), 0);
    native.randomFill(handle, this.#seed, `${this.key} ${this.#count++}`, 0, normal, a, b);
    native.tensorRead(handle, values);
    native.tensorRelease(handle);
    return values;
  }
}
