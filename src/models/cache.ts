// Keys and values of earlier tokens, for generation. One sequence.
import type { DType } from '../tensor/dtype.ts';
import { computeDevice } from '../tensor/streams.ts';
import { Tensor } from '../tensor/tensor.ts';

export class LayerCache implements Disposable {
  private keys: Tensor | undefined;
  private values: Tensor | undefined;
  private readonly capacity: number;
  length = 0;

  /** `capacity`: the most tokens it will hold. */
  constructor(capacity: number) {
    this.capacity = capacity;
  }

  /** Adds rows (tokens, kvHeads · headDim) and returns all keys and values so far. */
  append(k: Tensor, v: Tensor): [Tensor, Tensor] {
    const rows = k.size(0);
    if (this.length + rows > this.capacity) {
      throw new RangeError(`the cache holds ${this.capacity} tokens but ${this.length + rows} were given`);
    }
    this.keys ??= this.allocate(k.size(1), k.dtype);
    this.values ??= this.allocate(v.size(1), v.dtype);
    for (const [store, fresh] of [
      [this.keys, k],
      [this.values, v],
    ] as const) {
      using slot = store.narrow(this.length, rows);
      slot.copyFrom(fresh);
    }
    this.length += rows;
    return [this.keys.narrow(0, this.length), this.values.narrow(0, this.length)];
  }

  private allocate(width: number, dtype: DType): Tensor {
    return Tensor.empty([this.capacity, width], dtype, 'activation', computeDevice());
  }

  [Symbol.dispose](): void {
    this.keys?.dispose();
    this.values?.dispose();
  }
}
