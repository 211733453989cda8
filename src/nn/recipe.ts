// A recipe says where the values of a parameter come from, without having them: any range of it can be produced alone.
// Deferred init, rank-0 loading, direct sharded reads and reproducible random init are readings of the same recipe.
import { type Handle, native } from '../native.ts';
import { type DType, dtypeNumber, dtypeSize } from '../tensor/dtype.ts';
import { initialSeed } from '../tensor/random.ts';
import type { Tensor } from '../tensor/tensor.ts';

/** What wrote a parameter last, for validateParamsAndBuffersInited. */
export type Writer = 'none' | 'file' | 'init' | 'receive' | 'user';

export interface Recipe {
  readonly writer: Writer;
  /** Bytes that a full reading takes from files; 0 when computed. For progress. */
  readonly fileBytes: number;
  /** Enqueues on the current stream: `target` gets elements `start` … of the flattened parameter, cast to its dtype. */
  read(target: Tensor, start: number): void;
}

/** A contiguous range of a file. */
export class FileRecipe implements Recipe {
  readonly writer = 'file';
  private readonly file: Handle;
  private readonly byteOffset: number;
  readonly dtype: DType;
  readonly fileBytes: number;

  constructor(file: Handle, byteOffset: number, dtype: DType, numel: number) {
    this.file = file;
    this.byteOffset = byteOffset;
    this.dtype = dtype;
    this.fileBytes = numel * dtypeSize(dtype);
  }

  read(target: Tensor, start: number): void {
    native.fileRead(this.file, this.byteOffset + start * dtypeSize(this.dtype), target.handle, dtypeNumber(this.dtype));
  }
}

export class ConstantRecipe implements Recipe {
  readonly writer = 'init';
  readonly fileBytes = 0;
  private readonly value: number;

  constructor(value: number) {
    this.value = value;
  }

  read(target: Tensor): void {
    native.fill(target.handle, this.value);
  }
}

/** N(0, std), keyed by the seed at construction and the parameter's name. Elements [zeroFrom, zeroTo) are 0 (a padding row). */
export class NormalRecipe implements Recipe {
  readonly writer = 'init';
  readonly fileBytes = 0;
  private readonly seed: bigint = initialSeed();
  private readonly std: number;
  private readonly named: { readonly name: string };
  private readonly zeroFrom: number;
  private readonly zeroTo: number;

  constructor(named: { readonly name: string }, std: number, zeroFrom = 0, zeroTo = 0) {
    this.named = named;
    this.std = std;
    this.zeroFrom = zeroFrom;
    this.zeroTo = zeroTo;
  }

  read(target: Tensor, start: number): void {
    native.randomFill(target.handle, this.seed, this.named.name, start, true, 0, this.std);
    const from = Math.max(this.zeroFrom, start);
    const to = Math.min(this.zeroTo, start + target.numel);
    if (from >= to) return;
    using zeros = target.slice(from - start, [to - from]);
    native.fill(zeros.handle, 0);
  }
}

/** The elements of a tensor that exists. */
export class TensorRecipe implements Recipe {
  readonly writer: Writer;
  readonly fileBytes = 0;
  private readonly source: Tensor;

  constructor(source: Tensor, writer: Writer) {
    this.source = source;
    this.writer = writer;
  }

  read(target: Tensor, start: number): void {
    using range = this.source.slice(start, [target.numel]);
    target.copyFrom(range);
  }
}

/** Values that rank 0 sends while the model is wrapped. Reading it before is an error. */
export class ReceiveRecipe implements Recipe {
  readonly writer = 'receive';
  readonly fileBytes = 0;

  read(): void {
    throw new Error(
      'this parameter is received from rank 0 when FSDP wraps the model (syncModuleStates); it has no values yet',
    );
  }
}
