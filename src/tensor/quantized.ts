// How the bytes of a weight of few bits lie: what cpp/ops/quantized.h says, which checks the number of bytes at every use.

/** `nf4`: float32 scales; `nf4-double`: scales of a byte; `int8`: a float32 scale for each row. */
export type QuantizedStorage = 'nf4' | 'nf4-double' | 'int8';

// The numbers of Scheme.
const storages: readonly QuantizedStorage[] = ['nf4', 'nf4-double', 'int8'];
/** Elements of a whole weight, flattened, that have one scale in NF4. */
export const nf4Block = 64;
const scalesPerGroup = 256;
const align = (n: number): number => Math.ceil(n / 16) * 16;

/**
 * A quantised matrix, or a part of one, is a row of bytes: `lines` lines of elements that are neighbours in the whole, each in
 * pieces of `piece` elements that share a scale. Codes come first, then a scale for each piece, then what 8-bit scales mean.
 *
 * A whole NF4 matrix is one line in pieces of 64. A part of it, cut by rows or columns, is as many lines as it has runs, and its
 * pieces are as long as they can be so that none lies in two blocks of the whole, whichever rank's part it is: 64 where the cuts are
 * multiples of 64, a power of two below where they are not. The scale of a block that is cut is repeated for each of its pieces.
 * Codes and scales are so those of the whole, and a part says by itself what its elements are.
 */
export class QuantizedLayout {
  readonly storage: QuantizedStorage;
  readonly numel: number;
  readonly lines: number;
  readonly piece: number;
  /** Where the scales begin; the codes are at 0. */
  readonly scalesAt: number;
  /** With 8-bit scales: where the scales of groups of 256 of them begin, and their offset. */
  readonly groupsAt: number;
  /** Where each line begins among its groups. */
  readonly phasesAt: number;
  readonly offsetAt: number;
  readonly bytes: number;

  constructor(storage: QuantizedStorage, numel: number, lines: number, piece: number) {
    this.storage = storage;
    this.numel = numel;
    this.lines = lines;
    this.piece = piece;
    const isDouble = storage === 'nf4-double';
    const pieces = Math.ceil(numel / lines / piece);
    const perGroup = Math.max(1, Math.floor((scalesPerGroup * nf4Block) / piece));
    const groups = pieces === 0 ? 0 : Math.ceil((pieces - 1) / perGroup) + 1;
    this.scalesAt = align(storage === 'int8' ? numel : Math.ceil(numel / 2));
    this.groupsAt = this.scalesAt + align(lines * pieces * (isDouble ? 1 : 4));
    this.phasesAt = this.groupsAt + (isDouble ? align(4 * lines * groups) : 0);
    this.offsetAt = this.phasesAt + (isDouble ? align(4 * lines) : 0);
    this.bytes = this.offsetAt + (isDouble ? 16 : 0);
  }

  /** Of a whole matrix. */
  static whole(storage: QuantizedStorage, [rows, columns]: readonly [rows: number, columns: number]): QuantizedLayout {
    if (storage === 'int8') return new QuantizedLayout(storage, rows * columns, rows, columns);
    return new QuantizedLayout(storage, rows * columns, 1, nf4Block);
  }

  /** As native calls take it: scheme, lines, piece. */
  get operands(): readonly [scheme: number, lines: number, piece: number] {
    return [storages.indexOf(this.storage), this.lines, this.piece];
  }
}

/** A tensor whose elements are stored so; `handle` is that of the bytes. */
export interface HasQuantizedLayout {
  readonly quantized: QuantizedLayout | undefined;
}

/** @internal The layout of a quantised weight; undefined for what has its elements as they are. */
export function quantizedLayoutOf(tensor: object): QuantizedLayout | undefined {
  return (tensor as Partial<HasQuantizedLayout>).quantized;
}
