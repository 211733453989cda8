// How the ranks along the one axis of the mesh that divides layers hold a parameter, and all that follows from it: the part of this
// rank, where its elements stand in the whole, over which ranks its gradient is summed, and which rank counts and saves it. FSDP
// flattens parts and divides them further; it asks here, and nowhere else.
import { numelOf, type Shape } from '../tensor/tensor.ts';

/** Each rank has a part: dimension `dim` is divided into `parts`; with fewer parts than ranks, neighbours hold the same one. */
export interface Shard {
  readonly kind: 'shard';
  /** 0: rows; 1: the last dimension. */
  readonly dim: 0 | 1;
  readonly parts: number;
  /** Lengths of the pieces that a fused dimension 0 is made of ([query | key | value]); each is divided for itself. */
  readonly segments?: readonly number[] | undefined;
}

/** Each rank has the whole, and makes all of its gradient. */
export interface Replicate {
  readonly kind: 'replicate';
}

/** Each rank has the whole, and makes a part of its gradient: the parts are summed. */
export interface Partial {
  readonly kind: 'partial';
}

export type AxisPlacement = Shard | Replicate | Partial;

/** One axis of a mesh, as one rank sees it. */
export interface AxisPosition {
  readonly axis: string;
  readonly size: number;
  readonly rank: number;
}

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

/** Elements [start, start + length) of a block, which stand at `at` of a window of the part. */
export interface BlockPiece {
  readonly block: Block;
  readonly start: number;
  readonly at: number;
  readonly length: number;
}

/** The whole as rows of its last dimension; a vector is a column. */
export function matrixOf(shape: Shape): [rows: number, cols: number] {
  if (shape.length < 2) return [numelOf(shape), 1];
  const cols = shape.at(-1)!;
  return [numelOf(shape) / cols, cols];
}

const alone: AxisPosition = { axis: 'tensor', size: 1, rank: 0 };
const replicate: Replicate = { kind: 'replicate' };

/** How one rank holds a parameter: `held` on the axis at `position`. */
export class Placement {
  /** Shape in the checkpoint. */
  readonly fullShape: Shape;
  readonly position: AxisPosition;
  readonly held: AxisPlacement;
  /** Shape of this rank's part. The last one may reach beyond the whole (a padded vocabulary). */
  readonly localShape: Shape;
  /** Different parts; 1 where every rank has the whole. */
  readonly parts: number;
  /** What this rank has of the whole, one after the other: a block for each segment. */
  private readonly blocks: readonly Block[];

  constructor(fullShape: Shape, held: AxisPlacement = replicate, position: AxisPosition = alone) {
    this.fullShape = fullShape;
    this.held = held;
    this.position = position;
    this.parts = held.kind === 'shard' ? held.parts : 1;
    if (position.size % this.parts !== 0)
      throw new RangeError(
        `${this.parts} parts cannot be shared out to ${position.size} ranks of axis ${position.axis}`,
      );
    this.blocks = blocksOf(fullShape, held, this.part);
    this.localShape = localShapeOf(fullShape, held);
  }

  /** The part of another rank of the axis. */
  at(rank: number): Placement {
    if (rank === this.position.rank) return this;
    return new Placement(this.fullShape, this.held, { ...this.position, rank });
  }

  /** Whether every rank has the whole. */
  get isWhole(): boolean {
    return this.parts === 1;
  }

  /** Ranks that hold the same part. */
  get copies(): number {
    return this.position.size / this.parts;
  }

  /** Which part this rank holds. */
  get part(): number {
    return Math.floor(this.position.rank / this.copies);
  }

  /** Whether this rank is the first that holds its part: it counts in norms, and saves. */
  get isFirst(): boolean {
    return this.position.rank % this.copies === 0;
  }

  /** How many neighbours on the axis each make a part of this part's gradient; 1 where it is complete. */
  get gradientParts(): number {
    if (this.held.kind === 'shard') return this.copies;
    return this.held.kind === 'partial' ? this.position.size : 1;
  }

  /** Elements of the part that exist in the whole: all but padding, which comes last. */
  get realNumel(): number {
    const rows = matrixOf(this.fullShape)[0];
    return this.blocks.reduce((sum, block) => sum + realNumel(block, rows), 0);
  }

  /** What of the whole elements [start, start + length) of this part are; padding is left out. */
  *pieces(start: number, length: number): Generator<BlockPiece> {
    const rows = matrixOf(this.fullShape)[0];
    let offset = 0;
    for (const block of this.blocks) {
      const from = Math.max(start, offset);
      const to = Math.min(start + length, offset + realNumel(block, rows));
      if (from < to) yield { block, start: from - offset, at: from - start, length: to - from };
      offset += block.rows * block.cols;
    }
  }

  /** Where elements [start, start + length) of this part are in the whole; padding is left out. */
  *ranges(start: number, length: number): Generator<StridedRange> {
    const width = matrixOf(this.fullShape)[1];
    for (const piece of this.pieces(start, length)) yield* stridedRanges(piece, width);
  }
}

function blocksOf(fullShape: Shape, held: AxisPlacement, part: number): Block[] {
  const [rows, cols] = matrixOf(fullShape);
  if (held.kind !== 'shard') return [{ row: 0, rows, col: 0, cols }];
  const { dim, parts, segments } = held;
  if (dim === 1) {
    if (segments) throw new RangeError('a fused parameter has its segments in dimension 0');
    const width = Math.ceil(cols / parts);
    return [{ row: 0, rows, col: part * width, cols: width }];
  }
  const perIndex = rows / (fullShape[0] ?? 1); // rows of the matrix for one index of dimension 0
  if (!segments) {
    const height = Math.ceil((fullShape[0] ?? 1) / parts) * perIndex;
    return [{ row: part * height, rows: height, col: 0, cols }];
  }
  const sum = segments.reduce((total, length) => total + length, 0);
  const uneven = segments.find((length) => length % parts !== 0);
  if (sum !== fullShape[0] || uneven !== undefined)
    throw new RangeError(
      `segments of ${segments.join(' + ')} must add up to the ${fullShape[0]} rows and divide by ${parts} each`,
    );
  let row = 0;
  return segments.map((length) => {
    const height = (length / parts) * perIndex;
    const block = { row: row + part * height, rows: height, col: 0, cols };
    row += length * perIndex;
    return block;
  });
}

function localShapeOf(fullShape: Shape, held: AxisPlacement): Shape {
  if (held.kind !== 'shard') return fullShape;
  const divided = held.dim === 0 ? 0 : fullShape.length - 1;
  return fullShape.map((length, i) => (i === divided ? Math.ceil(length / held.parts) : length));
}

function realNumel({ row, rows, cols }: Block, fullRows: number): number {
  return Math.max(0, Math.min(rows, fullRows - row)) * cols;
}

/** The part of its first row, the whole rows, the part of its last row; one run where the block is as wide as the whole. */
function* stridedRanges({ block, start, at, length }: BlockPiece, width: number): Generator<StridedRange> {
  const { row, col, cols } = block;
  const end = start + length;
  if (cols === width) {
    yield { at, from: row * width + start, rows: 1, length, stride: length };
    return;
  }
  const place = (element: number): number => (row + Math.floor(element / cols)) * width + col + (element % cols);
  const firstWhole = Math.min(Math.ceil(start / cols) * cols, end);
  const lastWhole = Math.max(Math.floor(end / cols) * cols, firstWhole);
  const run = (from: number, to: number): StridedRange => {
    return { at: at + from - start, from: place(from), rows: 1, length: to - from, stride: width };
  };
  if (start < firstWhole) yield run(start, firstWhole);
  if (firstWhole < lastWhole) {
    const rows = (lastWhole - firstWhole) / cols;
    yield { at: at + firstWhole - start, from: place(firstWhole), rows, length: cols, stride: width };
  }
  if (lastWhole < end) yield run(lastWhole, end);
}
