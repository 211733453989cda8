// A tensor: metadata here, bytes behind a native handle. Contiguous; views along the first dimension share storage.
// Ops enqueue and return at once; only item() and data() wait.

import { span } from '../core/recorder.ts';
import { type Handle, type MemoryKind, memoryKinds, native } from '../native.ts';
import { type DType, dtypeNumber, dtypeSize, isFloating } from './dtype.ts';
import { runBackward } from './engine.ts';
import type { GradNode } from './node.ts';
import { track } from './scope.ts';

export type Device = 'cpu' | 'cuda' | 'meta';

/** The number that stands for a device in native calls. Meta has none: reading a handle there is the error that names it. */
export function deviceNumber(device: Device): number {
  return device === 'cuda' ? 1 : 0;
}

/** Handles of tensors on a device carry this bit (binding/handles.h). */
const ON_DEVICE = 2 ** 51;
// A disposed tensor still knows its device: backward asks for that of inputs that a scope has freed.
const DISPOSED = -1;
const DISPOSED_ON_DEVICE = -2;

export type { MemoryKind };
export type Shape = readonly number[];
export type TensorData = Float32Array | BigInt64Array | Int32Array | Uint8Array;

/** The number that stands for a memory kind in native calls. */
export function memoryKindNumber(kind: MemoryKind): number {
  return memoryKinds.indexOf(kind);
}

export function numelOf(shape: Shape): number {
  let n = 1;
  for (const size of shape) n *= size;
  return n;
}

// The net under dispose(): it runs when the loop yields, so hot code frees by scope and by autograd.
const forgotten = new FinalizationRegistry<Handle>((handle) => native.tensorRelease(handle));

export interface TensorOptions {
  dtype?: DType | undefined;
  device?: Device | undefined;
  requiresGrad?: boolean | undefined;
}

export class Tensor implements Disposable {
  readonly shape: Shape;
  /** Of the values. FSDP changes it on its parameters while they are gathered in the compute dtype. */
  dtype: DType;
  requiresGrad = false;
  /** The accumulated gradient of a leaf; undefined before the first backward and after zeroGrad. */
  grad: Tensor | undefined = undefined;
  /** The node that made this tensor, when it is part of a graph. */
  gradFn: GradNode | undefined = undefined;
  /**
   * @internal The values of an integer tensor made by from(), so that ids are checked without waiting for the device; and of the
   * gradient with which backward begins.
   */
  hostValues: ArrayLike<number | bigint> | undefined = undefined;
  /**
   * @internal Writes the values again, from what the op that made this tensor keeps for its backward. Until that backward has run: for
   * whoever would keep the tensor for its own.
   */
  remake: ((into: Tensor) => void) | undefined = undefined;
  protected handle_: Handle | undefined;

  /** @internal Takes ownership of `handle`; undefined makes a meta tensor. */
  constructor(handle: Handle | undefined, shape: Shape, dtype: DType) {
    this.handle_ = handle;
    this.shape = shape;
    this.dtype = dtype;
    if (handle !== undefined) forgotten.register(this, handle, this);
  }

  get device(): Device {
    if (this.handle_ === undefined) return 'meta';
    return this.handle_ >= ON_DEVICE || this.handle_ === DISPOSED_ON_DEVICE ? 'cuda' : 'cpu';
  }

  get numel(): number {
    return numelOf(this.shape);
  }

  /** Size of dimension `dim`; negative counts from the end. */
  size(dim: number): number {
    const size = this.shape.at(dim);
    if (size === undefined) throw new RangeError(`dimension ${dim} does not exist in shape [${this.shape}]`);
    return size;
  }

  /** @internal The native handle. Throws on meta and after dispose. */
  get handle(): Handle {
    if (this.handle_ === undefined) {
      throw new Error(`a meta tensor of shape [${this.shape}] has no data; materialise it first`);
    }
    return this.handle_;
  }

  get isDisposed(): boolean {
    return this.handle_ === DISPOSED || this.handle_ === DISPOSED_ON_DEVICE;
  }

  /** Uninitialised memory. Not tracked by scopes. */
  static empty(shape: Shape, dtype: DType = 'float32', kind: MemoryKind = 'other', device: Device = 'cpu'): Tensor {
    const numel = numelOf(shape);
    const handle = native.tensorEmpty(numel, dtypeNumber(dtype), memoryKindNumber(kind), deviceNumber(device));
    return new Tensor(handle, shape, dtype);
  }

  static full(
    shape: Shape,
    value: number,
    dtype: DType = 'float32',
    kind: MemoryKind = 'other',
    device: Device = 'cpu',
  ): Tensor {
    const tensor = Tensor.empty(shape, dtype, kind, device);
    native.fill(tensor.handle, value);
    return tensor;
  }

  static zeros(shape: Shape, dtype: DType = 'float32', kind: MemoryKind = 'other', device: Device = 'cpu'): Tensor {
    return Tensor.full(shape, 0, dtype, kind, device);
  }

  static meta(shape: Shape, dtype: DType = 'float32'): Tensor {
    return new Tensor(undefined, shape, dtype);
  }

  /**
   * A tensor of the given values in row-major order. `shape` defaults to one dimension; `dtype` to float32, or int64 for
   * a BigInt64Array. Throws a RangeError when values and shape disagree.
   */
  static from(
    data: readonly number[] | readonly bigint[] | TensorData | Float64Array,
    shape: Shape = [data.length],
    options: TensorOptions = {},
  ): Tensor {
    const dtype =
      options.dtype ?? (data instanceof BigInt64Array ? 'int64' : data instanceof Int32Array ? 'int32' : 'float32');
    if (numelOf(shape) !== data.length) {
      throw new RangeError(`shape [${shape}] wants ${numelOf(shape)} values but ${data.length} were given`);
    }
    const device = options.device ?? 'cpu';
    if (device === 'meta') return Tensor.meta(shape, dtype);
    const tensor = Tensor.empty(shape, dtype, 'other', device);
    if (isFloating(dtype)) {
      const values = data instanceof Float32Array ? data : Float32Array.from(data as readonly number[], Number);
      if (dtype === 'float32') native.tensorWrite(tensor.handle, values);
      else {
        using wide = Tensor.from(values, shape, { device });
        native.copy(tensor.handle, wide.handle);
      }
    } else if (dtype === 'int64') {
      native.tensorWrite(
        tensor.handle,
        data instanceof BigInt64Array ? data : BigInt64Array.from(data as readonly number[], (value) => BigInt(value)),
      );
    } else {
      const values = dtype === 'int32' ? Int32Array.from(data as number[]) : Uint8Array.from(data as number[]);
      native.tensorWrite(tensor.handle, values);
    }
    if (!isFloating(dtype)) tensor.hostValues = data;
    tensor.requiresGrad = options.requiresGrad ?? false;
    track(tensor);
    return tensor;
  }

  /** The same elements under another shape. Shares storage; detached. */
  view(shape: Shape): Tensor {
    if (numelOf(shape) !== this.numel) throw new RangeError(`a view of shape [${shape}] does not fit [${this.shape}]`);
    const view = new Tensor(native.tensorRetain(this.handle), shape, this.dtype);
    if (this.numel === 1) view.hostValues = this.hostValues;
    return view;
  }

  /** Rows `start` to `start + length` of the first dimension. Shares storage; detached. */
  narrow(start: number, length: number): Tensor {
    const row = numelOf(this.shape.slice(1));
    return new Tensor(
      native.tensorView(this.handle, start * row, length * row),
      [length, ...this.shape.slice(1)],
      this.dtype,
    );
  }

  /** @internal Elements `offset` … of the flattened tensor as `shape`. Shares storage. */
  slice(offset: number, shape: Shape): Tensor {
    return new Tensor(native.tensorView(this.handle, offset, numelOf(shape)), shape, this.dtype);
  }

  /** Another tensor object on the same storage, outside the graph. */
  detach(): Tensor {
    return this.handle_ === undefined ? Tensor.meta(this.shape, this.dtype) : this.view(this.shape);
  }

  /**
   * A copy in another dtype, on another device, or both (or neither). Enqueues: from one device to another it is ordered
   * behind the work that both devices have by now.
   */
  to(target: DType | 'cpu' | 'cuda' | { dtype?: DType | undefined; device?: 'cpu' | 'cuda' | undefined }): Tensor {
    const options =
      typeof target === 'object'
        ? target
        : target === 'cpu' || target === 'cuda'
          ? { device: target }
          : { dtype: target };
    const out = Tensor.empty(this.shape, options.dtype ?? this.dtype, 'other', options.device ?? this.device);
    out.copyFrom(this);
    track(out);
    return out;
  }

  /** @internal Overwrites the values; dtypes and devices may differ. */
  copyFrom(source: Tensor): void {
    if (source.dtype === this.dtype || source.device === this.device) {
      native.copy(this.handle, source.handle);
      return;
    }
    // The narrower dtype travels.
    const cast = dtypeSize(source.dtype) > dtypeSize(this.dtype) ? 'before' : 'after';
    const [dtype, device] = cast === 'before' ? [this.dtype, source.device] : [source.dtype, this.device];
    using between = Tensor.empty(source.shape, dtype, 'staging', device);
    native.copy(between.handle, source.handle);
    native.copy(this.handle, between.handle);
  }

  /** The value of a one-element tensor. Waits for it. */
  item(): number {
    if (this.numel !== 1) throw new RangeError(`item() wants one element but the shape is [${this.shape}]`);
    return Number(this.dataSync()[0]);
  }

  /** The values: Float32Array for floating dtypes, BigInt64Array for int64, else Int32Array or Uint8Array. */
  async data(): Promise<TensorData> {
    if (isFloating(this.dtype) && this.dtype !== 'float32') {
      const wide = Tensor.empty(this.shape, 'float32', 'staging', this.device);
      wide.copyFrom(this);
      try {
        return await wide.data();
      } finally {
        wide.dispose();
      }
    }
    return this.typed(await native.tensorReadAsync(this.handle));
  }

  /** As data(), blocking. */
  dataSync(): TensorData {
    if (isFloating(this.dtype) && this.dtype !== 'float32') {
      const wide = Tensor.empty(this.shape, 'float32', 'staging', this.device);
      wide.copyFrom(this);
      const data = wide.dataSync();
      wide.dispose();
      return data;
    }
    const width = this.dtype === 'int64' ? 8 : this.dtype === 'uint8' ? 1 : 4;
    const out = this.typed(new ArrayBuffer(this.numel * width));
    native.tensorRead(this.handle, out);
    return out;
  }

  private typed(bytes: ArrayBuffer): TensorData {
    switch (this.dtype) {
      case 'int64':
        return new BigInt64Array(bytes);
      case 'int32':
        return new Int32Array(bytes);
      case 'uint8':
        return new Uint8Array(bytes);
      default:
        return new Float32Array(bytes);
    }
  }

  /**
   * Adds the gradient of this tensor to `.grad` of every leaf that requires one. `gradient` defaults to 1 and may be
   * left out for one-element tensors only. The graph is freed: a second call on it throws. Enqueues; does not wait.
   */
  backward(gradient?: Tensor): void {
    span('backward', '', () => runBackward(this, gradient));
  }

  /** Frees the storage when no view shares it. Idempotent; any later use throws. */
  dispose(): void {
    if (this.handle_ === undefined || this.isDisposed) return;
    forgotten.unregister(this);
    native.tensorRelease(this.handle_);
    this.handle_ = this.device === 'cuda' ? DISPOSED_ON_DEVICE : DISPOSED;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  toString(): string {
    return `Tensor([${this.shape}], ${this.dtype}, ${this.device})`;
  }
}
