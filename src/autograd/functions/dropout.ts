// Dropout: which elements are dropped is drawn again in backward, and never kept.
import { native } from '../../native.ts';
import type { Tensor } from '../../tensor/tensor.ts';
import { currentRandomness } from '../randomness.ts';
import { gradient, output, record } from '../record.ts';

export interface DropoutPlace {
  /** Columns of `x` where this rank has some of them. Default: those that it has. */
  readonly columns?: number | undefined;
  /** Which of the equal parts of rows or columns this rank has, where it has a part. Default 0. */
  readonly part?: number | undefined;
}

/**
 * Zeroes elements of `x` (rows, columns) with probability `p`, and divides the others by 1 − p. Mirrors
 * torch.nn.functional.dropout, but for what it draws by: the step, seed and examples of `withRandomness`, and `name`, which no other
 * place in the model has. Where `x` is a part of the rows of the forward, or of its columns, its elements draw what they would draw
 * in the whole. With p = 0 the result is `x`.
 */
export function dropout(x: Tensor, p: number, name: string, place: DropoutPlace = {}): Tensor {
  if (!(p >= 0 && p <= 1)) throw new RangeError(`dropout: p must be from 0 to 1 but is ${p}`);
  if (p === 0) return x;
  const randomness = currentRandomness();
  if (!randomness?.rows)
    throw new Error(
      `dropout (${name}) does not know what to draw by: run forward inside withRandomness({ step, examples }, …), or call eval() for a forward without dropout`,
    );
  const { seed, step, rows } = randomness;
  const columns = x.size(-1);
  const numRows = x.numel / columns;
  const { part = 0, columns: all = columns } = place;
  if (rows.length % numRows !== 0 || all % columns !== 0)
    throw new RangeError(
      `dropout (${name}): [${x.shape}] is no part of the ${rows.length} rows of ${all} columns that the forward has`,
    );
  const [firstRow, firstColumn] = [numRows < rows.length ? part * numRows : 0, columns < all ? part * columns : 0];
  const key = `dropout/${step}/${name}`;
  const y = output(x.shape, x.dtype, x.device);
  using own = rows.tensor().slice(firstRow, [numRows]);
  native.dropout(y.handle, x.handle, own.handle, columns, firstColumn, p, seed, key);
  return record('dropout', y, [x], (saved) => {
    const kept = saved.keep(own);
    return (dy) => {
      const dx = gradient(x.shape, x.dtype, x.device);
      native.dropout(dx.handle, dy.handle, kept.handle, columns, firstColumn, p, seed, key);
      return [dx];
    };
  });
}
