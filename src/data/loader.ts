// Steps of training data for one rank. Every rank plans every step (the order depends on seed and epoch only) and builds
// its own part, so the count of labels over all ranks is known without a message, and a run resumes exactly, also on
// another number of ranks as long as the global batch is the same.
import { type Batch, fillerBatch, makeBatch } from './batch.ts';
import type { TokenDataset } from './dataset.ts';
import { packRows } from './packing.ts';
import { permutation, splitGlobalBatch } from './sampler.ts';

export interface DataLoaderOptions {
  /** Examples (rows, when packing) of one forward pass on one rank. */
  readonly batchSize: number;
  /** Forward passes of one step. Default: 1. */
  readonly gradAccum?: number | undefined;
  /** Data-parallel rank and size: ranks of one tensor-parallel group share them. Default: 0 of 1. */
  readonly dpRank?: number | undefined;
  readonly dpSize?: number | undefined;
  /** Default: 0. */
  readonly seed?: number | undefined;
  /** Default: true. Off for evaluation. */
  readonly shuffle?: boolean | undefined;
  /** Packs examples into rows of at most so many tokens. Default: one example a row. */
  readonly packTo?: number | undefined;
}

/** What one optimizer step gets on one rank. */
export interface DataStep {
  readonly epoch: number;
  /** From 0 in the epoch. */
  readonly step: number;
  readonly stepsInEpoch: number;
  /** As many on every rank. */
  readonly microBatches: readonly Batch[];
  /** Labels of all ranks and micro-batches: `numItemsInBatch`. */
  readonly numItems: number;
  /** Of all ranks. */
  readonly numTokens: number;
  readonly numExamples: number;
}

/** Where a loader is: plain JSON, for checkpoints. */
export interface DataLoaderState {
  readonly epoch: number;
  /** Steps done in the epoch. */
  readonly step: number;
  readonly seed: number;
  readonly globalBatchSize: number;
  readonly packTo: number | null;
  readonly numExamples: number;
  readonly numTokens: number;
}

/** Iterates over a data set in steps; endless, epoch after epoch. */
export class DataLoader implements Iterable<DataStep> {
  readonly dataset: TokenDataset;
  /** Rows of a whole step over all ranks. */
  readonly globalBatchSize: number;
  readonly #options: Required<{ [K in keyof DataLoaderOptions]: NonNullable<DataLoaderOptions[K]> }>;
  #epoch = 0;
  #step = 0;
  #rows: { epoch: number; rows: readonly (readonly number[])[] } | undefined;

  constructor(dataset: TokenDataset, options: DataLoaderOptions) {
    const { batchSize, gradAccum = 1, dpRank = 0, dpSize = 1, seed = 0, shuffle = true, packTo = 0 } = options;
    for (const [name, value] of Object.entries({ batchSize, gradAccum, dpSize })) {
      if (!Number.isSafeInteger(value) || value < 1)
        throw new RangeError(`${name} must be a whole number from 1, got ${value}`);
    }
    if (!(dpRank >= 0 && dpRank < dpSize))
      throw new RangeError(`dpRank must be from 0 to ${dpSize - 1}, got ${dpRank}`);
    if (dataset.length === 0) throw new RangeError('the data set has no examples');
    this.dataset = dataset;
    this.#options = { batchSize, gradAccum, dpRank, dpSize, seed, shuffle, packTo };
    this.globalBatchSize = batchSize * gradAccum * dpSize;
  }

  /** Rows of an epoch in order: the same on every rank. */
  #rowsOf(epoch: number): readonly (readonly number[])[] {
    if (this.#rows?.epoch !== epoch) {
      const { seed, shuffle, packTo } = this.#options;
      const n = this.dataset.length;
      const order = shuffle ? permutation(n, seed, epoch) : Uint32Array.from({ length: n }, (_, i) => i);
      const rows =
        packTo > 0 ? packRows(order, (i) => this.dataset.lengthOf(i), packTo) : Array.from(order, (i) => [i]);
      this.#rows = { epoch, rows };
    }
    return this.#rows.rows;
  }

  /** Steps of an epoch. With packing it may differ a little between epochs. */
  stepsInEpoch(epoch: number = this.#epoch): number {
    return Math.ceil(this.#rowsOf(epoch).length / this.globalBatchSize);
  }

  /** Steps of so many epochs from the start; the last may be a part of one. */
  totalSteps(epochs: number): number {
    const whole = Math.floor(epochs);
    if (this.#options.packTo === 0) {
      const steps = this.stepsInEpoch(0);
      return whole * steps + Math.ceil((epochs - whole) * steps);
    }
    let steps = 0;
    for (let epoch = 0; epoch < whole; epoch++) steps += this.stepsInEpoch(epoch);
    return epochs > whole ? steps + Math.ceil((epochs - whole) * this.stepsInEpoch(whole)) : steps;
  }

  /** The remaining steps of the current epoch. A step that was handed out counts as done in `state()`. */
  *epoch(): Generator<DataStep, void, undefined> {
    const epoch = this.#epoch;
    while (this.#epoch === epoch) yield this.#next();
  }

  *[Symbol.iterator](): Generator<DataStep, never, undefined> {
    while (true) yield this.#next();
  }

  #next(): DataStep {
    const { batchSize, dpRank, dpSize } = this.#options;
    const [epoch, step] = [this.#epoch, this.#step];
    const stepsInEpoch = this.stepsInEpoch(epoch);
    const rows = this.#rowsOf(epoch).slice(step * this.globalBatchSize, (step + 1) * this.globalBatchSize);
    let numbered = 0;
    const numbers = rows.map((row) => row.map(() => numbered++));
    const microBatches = splitGlobalBatch([...rows.keys()], dpRank, dpSize, batchSize).map((part) => {
      const flat = (of: readonly (readonly number[])[]): number[] => part.flatMap((row) => of[row]!);
      return part.length > 0 ? makeBatch(this.dataset, flat(rows), flat(numbers)) : fillerBatch(this.dataset);
    });
    if (step + 1 < stepsInEpoch) this.#step = step + 1;
    else [this.#epoch, this.#step] = [epoch + 1, 0];
    let [numItems, numTokens, numExamples] = [0, 0, 0];
    for (const example of rows.flat()) {
      numItems += this.dataset.labelsOf(example);
      numTokens += this.dataset.lengthOf(example);
      numExamples++;
    }
    return { epoch, step, stepsInEpoch, microBatches, numItems, numTokens, numExamples };
  }

  state(): DataLoaderState {
    return {
      epoch: this.#epoch,
      step: this.#step,
      seed: this.#options.seed,
      globalBatchSize: this.globalBatchSize,
      packTo: this.#options.packTo || null,
      numExamples: this.dataset.length,
      numTokens: this.dataset.numTokens,
    };
  }

  /** Goes on where `state` was taken. Errors: other data, seed or packing, or a global batch that does not line up. */
  loadState(state: DataLoaderState): void {
    const now = this.state();
    for (const key of ['seed', 'packTo', 'numExamples', 'numTokens'] as const) {
      if (state[key] !== now[key]) {
        throw new Error(`the data order cannot be resumed: ${key} was ${state[key]} and is ${now[key]}`);
      }
    }
    const step = (state.step * state.globalBatchSize) / now.globalBatchSize;
    if (!Number.isInteger(step)) {
      throw new Error(
        `the data order cannot be resumed after ${state.step} steps of ${state.globalBatchSize} examples: ` +
          `that is no whole number of steps of ${now.globalBatchSize}`,
      );
    }
    [this.#epoch, this.#step] = [state.epoch, step];
  }
}
