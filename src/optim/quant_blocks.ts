// Which blocks of 256 elements a rank has of a parameter. Blocks are of the whole parameter, row by row, so a rank may have a part of
// one: its elements of a block are one run, since elements of a part come in the order of the whole.
import { type Block, type BlockPiece, matrixOf, type Placement } from '../nn/placement.ts';
import type { Share } from '../nn/trainable_slice.ts';
import { numelOf, type Shape } from '../tensor/tensor.ts';

/** Elements of a block. */
export const quantBlock = 256;

export function numBlocks(shape: Shape): number {
  return Math.ceil(numelOf(shape) / quantBlock);
}

/** The runs of this rank's elements of one parameter, ascending. */
export interface BlockRuns {
  /** Number of the block of each run. */
  readonly blocks: readonly number[];
  /** [begin, end) of each run, from the first element of the range. */
  readonly bounds: readonly number[];
  /** Whether a run has the first element of its block. */
  readonly hasFirst: readonly boolean[];
}

/** Of elements [start, start + length) of a part. */
export function blockRuns(placement: Placement, start: number, length: number): BlockRuns {
  const runs = { blocks: [] as number[], bounds: [] as number[], hasFirst: [] as boolean[] };
  const [, width] = matrixOf(placement.fullShape);
  for (const piece of placement.pieces(start, length))
    for (const [from, at, n] of stretches(piece, width)) add(runs, from, at, n);
  return runs;
}

/** Consecutive elements of the whole: [first in the whole, first in the range, length]. */
function* stretches({ block, start, at, length }: BlockPiece, width: number): Generator<[number, number, number]> {
  const { row, col, cols } = block;
  if (cols === width) {
    yield [row * width + start, at, length];
    return;
  }
  for (let done = 0; done < length; ) {
    const element = start + done;
    const n = Math.min(cols - (element % cols), length - done);
    yield [(row + Math.floor(element / cols)) * width + col + (element % cols), at + done, n];
    done += n;
  }
}

function add(
  { blocks, bounds, hasFirst }: { blocks: number[]; bounds: number[]; hasFirst: boolean[] },
  from: number,
  at: number,
  length: number,
): void {
  for (let done = 0; done < length; ) {
    const block = Math.floor((from + done) / quantBlock);
    const n = Math.min((block + 1) * quantBlock - from - done, length - done);
    if (blocks.at(-1) === block) bounds[bounds.length - 1] = at + done + n;
    else {
      blocks.push(block);
      bounds.push(at + done, at + done + n);
      hasFirst.push((from + done) % quantBlock === 0);
    }
    done += n;
  }
}

/** Ranges [from, to) of block numbers, ascending and apart. */
export type BlockRanges = readonly (readonly [number, number])[];

/** The blocks of a parameter of which some rank has a part only, and some more: the same on every rank. */
export function cutBlocks(shape: Shape, shares: Iterable<Share>): BlockRanges {
  const [, width] = matrixOf(shape);
  const numel = numelOf(shape);
  const cut = new Set<number>();
  for (const { placement, start, length } of shares)
    for (const piece of placement.pieces(start, length)) {
      if (!isRegular(piece.block, width)) return [[0, numBlocks(shape)]];
      const isPart = piece.block.cols !== width;
      const ends = [piece.start, piece.start + piece.length];
      for (const end of ends) {
        const whole = isPart ? end % piece.block.cols : piece.block.row * width + end;
        if (whole % quantBlock === 0 || (!isPart && whole === numel)) continue;
        cut.add(isPart ? blockOf(piece.block, end, width) : Math.floor(whole / quantBlock));
      }
    }
  return [...cut].sort((a, b) => a - b).map((block) => [block, block + 1] as const);
}

/** Whether blocks of 256 are not cut by the columns that a part has. */
function isRegular({ col, cols }: Block, width: number): boolean {
  return cols === width || (width % quantBlock === 0 && cols % quantBlock === 0 && col % quantBlock === 0);
}

function blockOf({ row, col, cols }: Block, element: number, width: number): number {
  return Math.floor(((row + Math.floor(element / cols)) * width + col + (element % cols)) / quantBlock);
}

/** The shape of one number for each block: a matrix where rows consist of whole blocks. */
export function scaleShape(shape: Shape): Shape {
  const [rows, width] = matrixOf(shape);
  return width % quantBlock === 0 ? [rows, width / quantBlock] : [numBlocks(shape)];
}

/** Where the numbers of the wanted runs stand in a tensor of `scaleShape`; `runs` are those of elements [start, start + length). */
export function scalePieces(
  placement: Placement,
  start: number,
  length: number,
  runs: BlockRuns,
  isWanted: (run: number) => boolean,
): BlockPiece[] {
  const [rows, cols] = matrixOf(scaleShape(placement.fullShape));
  // Of columns of whole blocks: those columns. Otherwise blocks are counted through the whole.
  const window = windowOf(placement, start, length) ?? { row: 0, rows, col: 0, cols };
  const pieces: { start: number; at: number; length: number; block: Block }[] = [];
  for (const [at, number] of runs.blocks.entries()) {
    if (!isWanted(at)) continue;
    const element = (Math.floor(number / cols) - window.row) * window.cols + (number % cols) - window.col;
    const last = pieces.at(-1);
    if (last && last.start + last.length === element && last.at + last.length === at) last.length++;
    else pieces.push({ start: element, at, length: 1, block: window });
  }
  return pieces;
}

function windowOf(placement: Placement, start: number, length: number): Block | undefined {
  const [, width] = matrixOf(placement.fullShape);
  for (const { block } of placement.pieces(start, length)) {
    if (block.cols === width || !isRegular(block, width)) return undefined;
    return { row: block.row, rows: block.rows, col: block.col / quantBlock, cols: block.cols / quantBlock };
  }
  return undefined;
}
