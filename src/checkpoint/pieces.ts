// Geometry of pieces: a piece is a range of the elements of a block (of rows and columns) of a whole parameter. Reading one
// block from pieces of others is an intersection of rectangles.
import { type Block, type BlockPiece, matrixOf } from '../nn/placement.ts';
import { numelOf, type Shape } from '../tensor/tensor.ts';

/** A rectangle of the whole, and where its first element is among the elements of the block that it is part of. */
interface Rectangle extends Block {
  readonly at: number;
}

/** `rows` runs of `length` elements; both sides count from the first element of their ranges. */
export interface PieceCopy {
  readonly rows: number;
  readonly length: number;
  readonly from: number;
  readonly fromStride: number;
  readonly to: number;
  readonly toStride: number;
}

export interface BlockRange {
  readonly block: Block;
  /** Elements [start, start + length) of the block, row by row. */
  readonly start: number;
  readonly length: number;
}

/** The whole parameter as a block. */
export function wholeBlock(shape: Shape): Block {
  const [rows, cols] = matrixOf(shape);
  return { row: 0, rows, col: 0, cols };
}

export function sameBlock(a: Block, b: Block): boolean {
  return a.row === b.row && a.rows === b.rows && a.col === b.col && a.cols === b.cols;
}

/** What of `pieces` lies in elements [start, start + length) of the tensor in which they stand; `at` counts from `start`. */
export function* within(pieces: Iterable<BlockPiece>, start: number, length: number): Generator<BlockPiece> {
  for (const piece of pieces) {
    const from = Math.max(piece.at, start);
    const to = Math.min(piece.at + piece.length, start + length);
    if (from < to)
      yield { block: piece.block, start: piece.start + from - piece.at, at: from - start, length: to - from };
  }
}

export function overlap(a: Block, b: Block): boolean {
  return a.row < b.row + b.rows && b.row < a.row + a.rows && a.col < b.col + b.cols && b.col < a.col + a.cols;
}

/** The part of its first row, the whole rows, the part of its last row. */
function* rectangles({ block, start, length }: BlockRange): Generator<Rectangle> {
  const end = start + length;
  for (let at = start; at < end; ) {
    const column = at % block.cols;
    const wholeRows = column === 0 ? Math.floor((end - at) / block.cols) : 0;
    const cols = wholeRows > 0 ? block.cols : Math.min(block.cols - column, end - at);
    const rows = Math.max(1, wholeRows);
    yield { row: block.row + Math.floor(at / block.cols), rows, col: block.col + column, cols, at: at - start };
    at += rows * cols;
  }
}

/** What of `source` belongs into `target`, both ranges of blocks of a whole of `shape`. */
export function* copies(target: BlockRange, source: BlockRange, shape: Shape): Generator<PieceCopy> {
  const width = matrixOf(shape)[1];
  if (target.block.cols === width && source.block.cols === width) {
    // Contiguous on both sides.
    const [to, from] = [target, source].map(({ block, start }) => block.row * width + start) as [number, number];
    const begin = Math.max(to, from);
    const length = Math.min(to + target.length, from + source.length) - begin;
    if (length > 0) yield { rows: 1, length, from: begin - from, fromStride: width, to: begin - to, toStride: width };
    return;
  }
  for (const t of rectangles(target)) {
    for (const s of rectangles(source)) {
      if (!overlap(t, s)) continue;
      const row = Math.max(t.row, s.row);
      const col = Math.max(t.col, s.col);
      yield {
        rows: Math.min(t.row + t.rows, s.row + s.rows) - row,
        length: Math.min(t.col + t.cols, s.col + s.cols) - col,
        from: s.at + (row - s.row) * source.block.cols + (col - s.col),
        fromStride: source.block.cols,
        to: t.at + (row - t.row) * target.block.cols + (col - t.col),
        toStride: target.block.cols,
      };
    }
  }
}

/** The first problem of pieces that should make up a whole of `shape`, each element once; undefined when they do. */
export function coverageProblem(pieces: readonly BlockRange[], shape: Shape): string | undefined {
  const blocks = new Map<string, BlockRange[]>();
  for (const piece of pieces) {
    const { row, rows, col, cols } = piece.block;
    const key = [row, rows, col, cols].join();
    blocks.set(key, [...(blocks.get(key) ?? []), piece]);
  }
  let found = 0;
  const seen: Block[] = [];
  for (const ranges of blocks.values()) {
    const { block } = ranges[0]!;
    const other = seen.find((earlier) => overlap(earlier, block));
    if (other) return `rows ${block.row} … and columns ${block.col} … are there twice`;
    seen.push(block);
    let end = 0;
    for (const { start, length } of [...ranges].sort((a, b) => a.start - b.start)) {
      if (start !== end) return `elements ${Math.min(end, start)} … are ${start > end ? 'missing' : 'there twice'}`;
      end += length;
    }
    found += end;
  }
  const wanted = numelOf(shape);
  return found === wanted ? undefined : `it has ${found} of ${wanted} elements`;
}
