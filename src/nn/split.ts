// How a whole parameter is divided over the ranks of a tensor-parallel group: each rank holds a block of its rows or of its
// columns. Local elements map to ranges of the whole, so that any part of a block can be read, written or merged alone.
import { numelOf, type Shape } from '../tensor/tensor.ts';

/** Rows [row, row + rows) and columns [col, col + cols) of a whole parameter seen as a matrix. */
export interface Block {
  readonly row: number;
  readonly rows: number;
  readonly col: number;
  readonly cols: number;
}

/** `rows` runs of `length` elements that start at `from` of the whole, `stride` apart, and at `at` of the window, one after the other. */
export interface StridedRange {
  readonly at: number;
  readonly from: number;
  readonly rows: number;
  readonly length: number;
  readonly stride: number;
}

/** Dimension that is divided; undefined: every rank has the whole. */
export type SplitDim = 0 | 1 | undefined;

/** The whole as rows of its last dimension; a vector is a column. */
export function matrixOf(shape: Shape): [rows: number, cols: number] {
  if (shape.length < 2) return [numelOf(shape), 1];
  const cols = shape.at(-1)!;
  return [numelOf(shape) / cols, cols];
}

/** One rank's part of a parameter. */
export class TensorSplit {
  /** Shape in the checkpoint. */
  readonly fullShape: Shape;
  readonly dim: SplitDim;
  /** Ranks of the tensor-parallel group. */
  readonly size: number;
  readonly rank: number;
  /** Different parts; fewer than ranks: neighbours hold the same one. 1 where nothing is divided. */
  readonly parts: number;
  /** Shape of a part. The last one may reach beyond the whole (a padded vocabulary). */
  readonly localShape: Shape;

  constructor(fullShape: Shape, dim: SplitDim, size: number, rank: number, parts: number = size) {
    this.fullShape = fullShape;
    this.dim = dim;
    this.size = size;
    this.rank = rank;
    this.parts = dim === undefined ? 1 : parts;
    this.localShape = fullShape.map((length, i) => (i === dim ? Math.ceil(length / this.parts) : length));
  }

  /** The part of another rank. */
  at(rank: number): TensorSplit {
    return rank === this.rank ? this : new TensorSplit(this.fullShape, this.dim, this.size, rank, this.parts);
  }

  /** Ranks that hold the same part. */
  get replicas(): number {
    return this.size / this.parts;
  }

  /** Which part this rank holds. */
  get part(): number {
    return Math.floor(this.rank / this.replicas);
  }

  /** Whether this rank is the first that holds its part: it counts in norms, and saves. */
  get isPrimary(): boolean {
    return this.rank % this.replicas === 0;
  }

  get block(): Block {
    const [rows, cols] = matrixOf(this.localShape);
    return {
      row: this.dim === 0 ? this.part * rows : 0,
      rows,
      col: this.dim === 1 ? this.part * cols : 0,
      cols,
    };
  }

  /** Elements of the whole's row. */
  get width(): number {
    return matrixOf(this.fullShape)[1];
  }

  /** Elements of the part that exist in the whole: all but padding, which comes last. */
  get realNumel(): number {
    const { row, rows, cols } = this.block;
    const [fullRows] = matrixOf(this.fullShape);
    return Math.max(0, Math.min(rows, fullRows - row)) * cols;
  }

  /** Where elements [start, start + length) of this part are in the whole; padding is left out. */
  *ranges(start: number, length: number): Generator<StridedRange> {
    const { row, col, cols } = this.block;
    const width = this.width;
    const end = Math.min(start + length, this.realNumel);
    if (start >= end) return;
    if (cols === width) {
      yield { at: 0, from: row * width + start, rows: 1, length: end - start, stride: end - start };
      return;
    }
    const place = (element: number): number => (row + Math.floor(element / cols)) * width + col + (element % cols);
    const firstWhole = Math.min(Math.ceil(start / cols) * cols, end);
    const lastWhole = Math.max(Math.floor(end / cols) * cols, firstWhole);
    if (start < firstWhole) {
      yield { at: 0, from: place(start), rows: 1, length: firstWhole - start, stride: width };
    }
    if (firstWhole < lastWhole) {
      const rows = (lastWhole - firstWhole) / cols;
      yield { at: firstWhole - start, from: place(firstWhole), rows, length: cols, stride: width };
    }
    if (lastWhole < end) {
      yield { at: lastWhole - start, from: place(lastWhole), rows: 1, length: end - lastWhole, stride: width };
    }
  }
}
