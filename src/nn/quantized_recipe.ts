// Where the bytes of a quantised parameter come from. Scales depend on the whole, so the whole is quantised wherever a part of it is
// wanted: one parameter at a time, into the few bits that are then cut, sent and kept.
import { native } from '../native.ts';
import { nf4Block, QuantizedLayout, type QuantizedStorage } from '../tensor/quantized.ts';
import { numelOf, Tensor } from '../tensor/tensor.ts';
import { matrixOf, type Placement, type StridedRange } from './placement.ts';
import type { FilePlace, Recipe, Writer } from './recipe.ts';

/** The bytes of a whole matrix. */
export interface QuantizedSource {
  readonly writer: Writer;
  /** Of values that are quantised while they are read. */
  readonly place?: FilePlace | undefined;
  /** Enqueues on the current stream. */
  fill(whole: Tensor, layout: QuantizedLayout): void;
}

/** Floating values, quantised when they are read. */
export class FloatSource implements QuantizedSource {
  private readonly values: Recipe;

  constructor(values: Recipe) {
    this.values = values;
  }

  get writer(): Writer {
    return this.values.writer;
  }

  get place(): FilePlace | undefined {
    return this.values.place;
  }

  fill(whole: Tensor, layout: QuantizedLayout): void {
    using values = Tensor.empty([layout.numel], 'float32', 'staging');
    this.values.read(values, 0);
    native.quantizeWeight(whole.handle, values.handle, ...layout.operands);
  }
}

/** Bytes that exist. */
export class StoredSource implements QuantizedSource {
  readonly writer: Writer;
  private readonly bytes: Tensor;

  constructor(bytes: Tensor, writer: Writer) {
    this.bytes = bytes;
    this.writer = writer;
  }

  fill(whole: Tensor): void {
    whole.copyFrom(this.bytes);
  }
}

/** How one rank's part of a matrix lies in memory: the same on every rank that holds one. */
export function partLayout(storage: QuantizedStorage, placement: Placement): QuantizedLayout {
  const [rows, columns] = matrixOf(placement.fullShape);
  if (placement.isWhole) return QuantizedLayout.whole(storage, [rows, columns]);
  const numel = numelOf(placement.localShape);
  const [localRows, localColumns] = matrixOf(placement.localShape);
  if (storage === 'int8') return new QuantizedLayout(storage, numel, localRows, localColumns);
  // Lines and pieces that fit what each of the ranks holds.
  let length = numel;
  let piece = nf4Block;
  const ranges: StridedRange[] = [];
  for (let rank = 0; rank < placement.position.size; rank += placement.copies)
    ranges.push(...placement.at(rank).ranges(0, numel));
  for (const range of ranges) {
    length = gcd(length, range.length);
    piece = gcd(gcd(piece, range.from), range.rows > 1 ? range.stride : 0);
  }
  if (length < numel) piece = gcd(piece, length);
  return new QuantizedLayout(storage, numel, numel / length, piece);
}

function gcd(a: number, b: number): number {
  return b === 0 ? a : gcd(b, a % b);
}

/** The whole, quantised once for all parts that are cut from it until it is released. */
class QuantizedWhole {
  readonly source: QuantizedSource;
  private readonly parts = new Map<string, Tensor>();

  constructor(source: QuantizedSource) {
    this.source = source;
  }

  part(storage: QuantizedStorage, placement: Placement): Tensor {
    const key = placement.isWhole ? '' : String(placement.part);
    let bytes = this.parts.get(key);
    if (!bytes) {
      bytes = placement.isWhole ? this.make(storage, placement) : this.cut(storage, placement);
      this.parts.set(key, bytes);
    }
    return bytes;
  }

  private make(storage: QuantizedStorage, { fullShape }: Placement): Tensor {
    const layout = QuantizedLayout.whole(storage, matrixOf(fullShape));
    const whole = Tensor.empty([layout.bytes], 'uint8', 'staging');
    this.source.fill(whole, layout);
    return whole;
  }

  private cut(storage: QuantizedStorage, placement: Placement): Tensor {
    const of = QuantizedLayout.whole(storage, matrixOf(placement.fullShape));
    let whole = this.parts.get('');
    if (!whole) {
      whole = this.make(storage, placement);
      this.parts.set('', whole);
    }
    const to = partLayout(storage, placement);
    const part = Tensor.empty([to.bytes], 'uint8', 'staging');
    native.fill(part.handle, 0);
    if (storage !== 'int8') fillRange(part, 0, Math.ceil(to.numel / 2), 0x77); // zeros, where the whole has no such rows
    const length = to.numel / to.lines;
    const [scheme, lines, piece] = to.operands;
    const [, wholeLines, wholePiece] = of.operands;
    const cut = (at: number, from: number, count: number, stride: number): void =>
      native.sliceQuantized(
        part.handle,
        whole.handle,
        scheme,
        to.numel,
        lines,
        piece,
        of.numel,
        wholeLines,
        wholePiece,
        at / length,
        count,
        from,
        stride,
      );
    for (const { at, from, rows, length: run, stride } of placement.ranges(0, to.numel)) {
      if (run === length) cut(at, from, rows, stride);
      else for (let row = 0; row < rows; row++) cut(at + row * run, from + row * stride, run / length, length);
    }
    return part;
  }

  release(): void {
    for (const bytes of this.parts.values()) bytes.dispose();
    this.parts.clear();
  }
}

function fillRange(tensor: Tensor, at: number, length: number, value: number): void {
  using range = tensor.slice(at, [length]);
  native.fill(range.handle, value);
}

/** The bytes of one rank's part. `read` counts in bytes. Between the first read and release() the whole is held, quantised. */
export class QuantizedRecipe implements Recipe {
  // Bytes are computed, not read to where they belong.
  readonly fileBytes = 0;
  private readonly whole: QuantizedWhole;
  private readonly storage: QuantizedStorage;
  private readonly placement: Placement;

  constructor(source: QuantizedSource | QuantizedWhole, storage: QuantizedStorage, placement: Placement) {
    this.whole = source instanceof QuantizedWhole ? source : new QuantizedWhole(source);
    this.storage = storage;
    this.placement = placement;
  }

  get writer(): Writer {
    return this.whole.source.writer;
  }

  get place(): FilePlace | undefined {
    return this.whole.source.place;
  }

  /** The part that `placement` says, of the same whole. */
  partFor(placement: Placement): QuantizedRecipe {
    return new QuantizedRecipe(this.whole, this.storage, placement);
  }

  forRank(rank: number): QuantizedRecipe {
    return this.partFor(this.placement.at(rank));
  }

  read(target: Tensor, start: number): void {
    using range = this.whole.part(this.storage, this.placement).slice(start, [target.numel]);
    target.copyFrom(range);
  }

  release(): void {
    this.whole.release();
  }
}
