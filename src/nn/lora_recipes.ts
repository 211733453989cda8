// Values that follow from a weight and its adapter: lengths of the rows, and the weight with the adapter in it. Read in blocks of rows,
// so that a weight is never there as a whole.
import { lowRankProduct } from '../autograd/functions/dora.ts';
import { NONE, native } from '../native.ts';
import { Tensor } from '../tensor/tensor.ts';
import type { LoraFactors } from './lora.ts';
import { copyOn } from './parameter.ts';
import type { Recipe } from './recipe.ts';

/** A product of small matrices, in host memory. */
interface Update {
  /** (r, cols) */
  readonly a: Tensor;
  /** (rows, r) */
  readonly b: Tensor;
  readonly factor: number;
}

// Elements of a weight in memory at a time.
const blockNumel = 4 << 20;

/** A weight (rows, cols) by rows: what a recipe has, plus an update of low rank where there is one. */
class Rows {
  private readonly whole: Recipe;
  private readonly cols: number;
  private readonly update: Update | undefined;

  constructor(whole: Recipe, cols: number, update?: Update) {
    this.whole = whole;
    this.cols = cols;
    this.update = update;
  }

  /** Calls `use` with blocks of the rows [from, to) in float32 and the first row of each; enqueues. */
  each(from: number, to: number, use: (block: Tensor, first: number) => void): void {
    const rows = Math.max(1, Math.floor(blockNumel / this.cols));
    for (let first = from; first < to; first += rows) {
      using block = Tensor.empty([Math.min(rows, to - first), this.cols], 'float32', 'staging');
      this.whole.read(block, first * this.cols);
      if (this.update) {
        const { a, b, factor } = this.update;
        using part = b.narrow(first, block.size(0));
        using update = lowRankProduct(a, part, factor, block);
        native.add(block.handle, block.handle, update.handle);
      }
      use(block, first);
    }
  }
}

/** √ of the sums of squares of the rows of `block`, which are not 0. */
function lengthsOf(block: Tensor, target: Tensor): void {
  const [rows, cols] = [block.size(0), block.size(1)];
  using squares = Tensor.empty([rows], 'float32', 'staging');
  using ones = Tensor.full([rows], 1, 'float32', 'staging');
  native.rowSquares(squares.handle, block.handle, NONE, rows, cols);
  native.doraForward(target.handle, squares.handle, ones.handle, squares.handle, 1, rows);
}

/** The lengths of the rows of a weight (rows, cols): DoRA's first magnitudes, since B begins at zero. */
export class RowLengthsRecipe implements Recipe {
  readonly writer = 'init';
  readonly fileBytes = 0;
  private readonly rows: Rows;

  constructor(weight: Recipe, cols: number) {
    this.rows = new Rows(weight, cols);
  }

  read(target: Tensor, start: number): void {
    this.rows.each(start, start + target.numel, (block, first) => {
      using part = target.slice(first - start, [block.size(0)]);
      lengthsOf(block, part);
    });
  }
}

/** A weight (rows, cols) with an adapter in it, as PEFT merges: w + factor · b a, of DoRA with its rows brought to their magnitudes. The factors are those of now. */
export class MergedRecipe implements Recipe {
  readonly writer: Recipe['writer'];
  readonly fileBytes: number;
  private readonly rows: Rows;
  private readonly cols: number;
  private readonly magnitude: Tensor | undefined;

  constructor(weight: Recipe, cols: number, factors: LoraFactors) {
    this.writer = weight.writer;
    this.fileBytes = weight.fileBytes;
    const { a, b, magnitude, settings } = factors;
    const kept = (tensor: Tensor): Tensor => copyOn('cpu', tensor, 'other');
    this.rows = new Rows(weight, cols, { a: kept(a), b: kept(b), factor: settings.factor });
    this.cols = cols;
    this.magnitude = magnitude && kept(magnitude);
  }

  read(target: Tensor, start: number): void {
    const { cols, magnitude } = this;
    const end = start + target.numel;
    this.rows.each(Math.floor(start / cols), Math.ceil(end / cols), (block, first) => {
      const rows = block.size(0);
      if (magnitude) scaleRows(block, magnitude, first);
      const [from, to] = [Math.max(start, first * cols), Math.min(end, (first + rows) * cols)];
      using part = target.slice(from - start, [to - from]);
      using values = block.slice(from - first * cols, [to - from]);
      part.copyFrom(values);
    });
  }
}

/** Brings the rows of `block` (float32), which are those of the whole from `first` on, to their magnitudes. */
function scaleRows(block: Tensor, magnitude: Tensor, first: number): void {
  const [rows, cols] = [block.size(0), block.size(1)];
  using squares = Tensor.empty([rows], 'float32', 'staging', block.device);
  native.rowSquares(squares.handle, block.handle, NONE, rows, cols);
  using wanted = magnitude.slice(first, [rows]);
  multiplyRows(block, wanted, squares);
}

/** matrix (rows, cols) · magnitude (rows) / √squares (rows), row by row, in place. */
export function multiplyRows(matrix: Tensor, magnitude: Tensor, squares: Tensor): void {
  const rows = matrix.size(0);
  using factors = Tensor.full([rows], 1, 'float32', 'staging', matrix.device);
  native.doraForward(factors.handle, factors.handle, magnitude.handle, squares.handle, 1, rows);
  for (let i = 0; i < rows; i++) {
    using row = matrix.narrow(i, 1);
    using factor = factors.narrow(i, 1);
    native.scale(row.handle, row.handle, factor.handle, 1, false);
  }
}
