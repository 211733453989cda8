// A recipe says where the values of a parameter come from, without having them: any range of it can be produced alone.
// Deferred init, rank-0 loading, direct sharded reads and reproducible random init are readings of the same recipe.
import type { ProcessGroup } from '../distributed/process_group.ts';
import { type Handle, native } from '../native.ts';
import { type DType, dtypeNumber, dtypeSize } from '../tensor/dtype.ts';
import { initialSeed } from '../tensor/random.ts';
import { numelOf, Tensor } from '../tensor/tensor.ts';
import type { Placement } from './placement.ts';

/** What wrote a parameter last, for validateParamsAndBuffersInited. */
export type Writer = 'none' | 'file' | 'init' | 'receive' | 'user';

/** Where the whole values of a parameter lie. */
export interface FilePlace {
  readonly file: Handle;
  /** Absolute. */
  readonly path: string;
  readonly byteOffset: number;
  readonly dtype: DType;
}

export interface Recipe {
  readonly writer: Writer;
  /** Bytes that a full reading takes from files; 0 when computed. For progress. */
  readonly fileBytes: number;
  /** Enqueues on the current stream: `target` gets elements `start` … of the flattened parameter, cast to its dtype. */
  read(target: Tensor, start: number): void;
  /** As read, for runs of `length` elements that start `stride` apart; absent: run by run. */
  readRows?(target: Tensor, start: number, length: number, stride: number): void;
  /** Where the whole lies of which this is all or a part; absent: in no file. */
  readonly place?: FilePlace | undefined;
  /** What another rank of the tensor-parallel group gets; on rank 0, which holds the whole. */
  forRank?(rank: number): Recipe;
  /** A rank's part of what this gives whole; absent: elements are picked from it (PartRecipe). */
  partFor?(placement: Placement): RankedRecipe;
  /** Drops what was kept between reads. What was read stays. */
  release?(): void;
}

/** One that knows the parts of all ranks. */
export type RankedRecipe = Recipe & Required<Pick<Recipe, 'forRank'>>;

/** One rank's part of what `whole` gives. */
export function partOf(whole: Recipe, placement: Placement): RankedRecipe {
  return whole.partFor?.(placement) ?? new PartRecipe(whole, placement);
}

/** A contiguous range of a file. */
export class FileRecipe implements Recipe {
  readonly writer = 'file';
  private readonly file: Handle;
  private readonly byteOffset: number;
  readonly dtype: DType;
  readonly fileBytes: number;
  private readonly path: string;

  /** `path`: of the file, so that other hosts may look for it. */
  constructor(file: Handle, byteOffset: number, dtype: DType, numel: number, path = '') {
    this.file = file;
    this.path = path;
    this.byteOffset = byteOffset;
    this.dtype = dtype;
    this.fileBytes = numel * dtypeSize(dtype);
  }

  get place(): FilePlace | undefined {
    const { file, path, byteOffset, dtype } = this;
    return path === '' ? undefined : { file, path, byteOffset, dtype };
  }

  read(target: Tensor, start: number): void {
    native.fileRead(this.file, this.byteOffset + start * dtypeSize(this.dtype), target.handle, dtypeNumber(this.dtype));
  }

  readRows(target: Tensor, start: number, length: number, stride: number): void {
    const offset = this.byteOffset + start * dtypeSize(this.dtype);
    native.fileReadRows(this.file, offset, target.handle, dtypeNumber(this.dtype), length, stride);
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

/** Uniform in [-bound, bound), keyed by the seed at construction and the parameter's name. */
export class UniformRecipe implements Recipe {
  readonly writer = 'init';
  readonly fileBytes = 0;
  private readonly seed: bigint = initialSeed();
  private readonly bound: number;
  private readonly named: { readonly name: string };

  constructor(named: { readonly name: string }, bound: number) {
    this.named = named;
    this.bound = bound;
  }

  read(target: Tensor, start: number): void {
    native.randomFill(target.handle, this.seed, this.named.name, start, false, -this.bound, this.bound);
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

/** One rank's part of what another recipe gives whole. Padding is zero. */
export class PartRecipe implements Recipe {
  readonly writer: Writer;
  readonly fileBytes: number;
  private readonly whole: Recipe;
  private readonly placement: Placement;

  constructor(whole: Recipe, placement: Placement) {
    this.whole = whole;
    this.placement = placement;
    this.writer = whole.writer;
    this.fileBytes = Math.round((whole.fileBytes * placement.realNumel) / numelOf(placement.fullShape));
  }

  get place(): FilePlace | undefined {
    return this.whole.place;
  }

  forRank(rank: number): Recipe {
    return new PartRecipe(this.whole, this.placement.at(rank));
  }

  read(target: Tensor, start: number): void {
    let filled = 0;
    for (const { at, from, rows, length, stride } of this.placement.ranges(start, target.numel)) {
      using part = target.slice(at, [rows * length]);
      readRows(this.whole, part, from, length, stride);
      filled = at + rows * length;
    }
    if (filled === target.numel) return;
    using padding = target.slice(filled, [target.numel - filled]);
    native.fill(padding.handle, 0);
  }
}

function readRows(recipe: Recipe, target: Tensor, start: number, length: number, stride: number): void {
  const rows = target.numel / length;
  if (rows === 1) recipe.read(target, start);
  else if (recipe.readRows) recipe.readRows(target, start, length, stride);
  else {
    for (let row = 0; row < rows; row++) {
      using run = target.slice(row * length, [length]);
      recipe.read(run, start + row * stride);
    }
  }
}

/**
 * A part of rank 0's checkpoint, for the ranks of its tensor-parallel group (`group`, of which the checkpoint's holder is
 * rank 0). FSDP streams it; reading it before that is a collective of the group: every rank must read the same parameters
 * in the same order.
 */
export class FromRank0Recipe implements Recipe {
  readonly writer: Writer;
  readonly fileBytes: number;
  private readonly source: RankedRecipe | undefined;
  private readonly group: ProcessGroup;

  /** `source` on rank 0 only. */
  constructor(group: ProcessGroup, source: RankedRecipe | undefined) {
    this.group = group;
    this.source = source;
    this.writer = source ? source.writer : 'receive';
    this.fileBytes = source?.fileBytes ?? 0;
  }

  get place(): FilePlace | undefined {
    return this.source?.place;
  }

  forRank(rank: number): Recipe {
    if (!this.source) throw new Error('only rank 0 of the tensor-parallel group holds the weights');
    return this.source.forRank(rank);
  }

  read(target: Tensor, start: number): void {
    if (!this.source) {
      this.group.recv(target.handle, 0);
      return;
    }
    for (let rank = 1; rank < this.group.size; rank++) {
      using part = Tensor.empty([target.numel], target.dtype, 'staging');
      this.source.forRank(rank).read(part, start);
      this.group.send(part.handle, rank);
    }
    this.source.read(target, start);
  }

  release(): void {
    this.source?.release?.();
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
