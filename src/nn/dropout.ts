// Dropout as a module: in training, zeroes elements at random; otherwise nothing.
import { dropout } from '../autograd/functions/dropout.ts';
import type { Tensor } from '../tensor/tensor.ts';
import { Module } from './module.ts';

export interface DropoutOptions {
  /** Of the whole input, where tensor parallelism leaves each rank a part of its columns. Default: those of the input. */
  columns?: number | undefined;
  /** Which of the equal parts of rows or columns this rank has, with tensor parallelism. Default 0; `transform` sets it. */
  part?: number | undefined;
  /** Of this place in the model. Default: its path, once the model has given names (`assignParameterNames`). */
  name?: string | undefined;
}

/** Mirrors `torch.nn.Dropout`; what it draws by is said by `withRandomness`. A module that runs twice in a forward drops the same. */
export class Dropout extends Module {
  /** The probability of zero. */
  readonly p: number;
  readonly columns: number | undefined;
  /** Which of the equal parts of rows or columns this rank has, with tensor parallelism. */
  part: number;
  private name: string;

  constructor(p: number, options: DropoutOptions = {}) {
    super();
    if (!(p >= 0 && p <= 1)) throw new RangeError(`Dropout: p must be from 0 to 1 but is ${p}`);
    this.p = p;
    this.columns = options.columns;
    this.part = options.part ?? 0;
    this.name = options.name ?? '';
  }

  /** @internal */
  override assignName(path: string): void {
    this.name ||= path;
  }

  forward(x: Tensor): Tensor {
    if (!this.training || this.p === 0) return x;
    if (!this.name)
      throw new Error(
        'Dropout: this module has no name to draw by: give one, or call assignParameterNames of the model',
      );
    return dropout(x, this.p, this.name, this);
  }
}
