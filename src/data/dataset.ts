// Tokenized examples in flat arrays: five bytes a token, whatever the number of examples.
import { FileFormatError } from '../core/json.ts';
import { type Example, type ExampleOptions, tokenizeRecord } from './examples.ts';
import { readJsonl } from './jsonl.ts';
import type { Tokenizer } from './tokenizer.ts';

/** What became of a data file. */
export interface DatasetReport {
  readonly file: string;
  readonly numExamples: number;
  readonly numTokens: number;
  /** Tokens that are judged. */
  readonly numLabels: number;
  /** Tokens of the longest example. */
  readonly longest: number;
  /** Cut at maxLength. */
  readonly numTruncated: number;
  /** Left out because no token of them is judged (after cutting). */
  readonly numDropped: number;
  /** Examples with a token that spans the border of prompt and completion. */
  readonly numBoundaryMerged: number;
}

/** Examples by index. Immutable once built. */
export class TokenDataset {
  readonly #tokens: Int32Array;
  readonly #mask: Uint8Array;
  readonly #starts: readonly number[];
  readonly #labels: readonly number[];
  readonly length: number;
  readonly numTokens: number;
  readonly numLabels: number;

  private constructor(tokens: Int32Array, mask: Uint8Array, starts: readonly number[], labels: readonly number[]) {
    this.#tokens = tokens;
    this.#mask = mask;
    this.#starts = starts;
    this.#labels = labels;
    this.length = labels.length;
    this.numTokens = starts[labels.length]!;
    this.numLabels = labels.reduce((a, b) => a + b, 0);
  }

  static from(examples: Iterable<Pick<Example, 'inputIds' | 'mask'>>): TokenDataset {
    const builder = new DatasetBuilder();
    for (const example of examples) builder.add(example);
    return builder.build();
  }

  /** Used by the builder. */
  static of(tokens: Int32Array, mask: Uint8Array, starts: readonly number[], labels: readonly number[]): TokenDataset {
    return new TokenDataset(tokens, mask, starts, labels);
  }

  /** Tokens of example `i`. */
  lengthOf(i: number): number {
    return this.#starts[i + 1]! - this.#starts[i]!;
  }

  /** Judged tokens of example `i`. */
  labelsOf(i: number): number {
    return this.#labels[i]!;
  }

  tokens(i: number): Int32Array {
    return this.#tokens.subarray(this.#starts[i], this.#starts[i + 1]);
  }

  mask(i: number): Uint8Array {
    return this.#mask.subarray(this.#starts[i], this.#starts[i + 1]);
  }
}

/** Collects examples, doubling its arrays. */
export class DatasetBuilder {
  #tokens: Int32Array = new Int32Array(1 << 14);
  #mask: Uint8Array = new Uint8Array(1 << 14);
  readonly #starts: number[] = [0];
  readonly #labels: number[] = [];

  add({ inputIds, mask }: Pick<Example, 'inputIds' | 'mask'>): void {
    const start = this.#starts.at(-1)!;
    const end = start + inputIds.length;
    if (end > this.#tokens.length) {
      const room = Math.max(end, 2 * this.#tokens.length);
      const tokens = new Int32Array(room);
      const masks = new Uint8Array(room);
      tokens.set(this.#tokens);
      masks.set(this.#mask);
      this.#tokens = tokens;
      this.#mask = masks;
    }
    this.#tokens.set(inputIds, start);
    this.#mask.set(mask, start);
    this.#starts.push(end);
    let labels = 0;
    for (let i = 1; i < mask.length; i++) labels += mask[i]!;
    this.#labels.push(labels);
  }

  build(): TokenDataset {
    const end = this.#starts.at(-1)!;
    return TokenDataset.of(this.#tokens.slice(0, end), this.#mask.slice(0, end), this.#starts, this.#labels);
  }
}

/**
 * Reads and tokenizes a JSONL file.
 * Errors name file and line; a file without a usable example is an error too.
 */
export async function loadDataset(
  path: string,
  tokenizer: Tokenizer,
  options: ExampleOptions = {},
): Promise<{ dataset: TokenDataset; report: DatasetReport }> {
  const builder = new DatasetBuilder();
  let numTruncated = 0;
  let numDropped = 0;
  let numBoundaryMerged = 0;
  let longest = 0;
  for await (const { line, record } of readJsonl(path)) {
    let example: Example;
    try {
      example = tokenizeRecord(record, tokenizer, options);
    } catch (cause) {
      throw new FileFormatError(`${path}:${line}`, (cause as Error).message, { cause });
    }
    if (example.truncated) numTruncated++;
    if (!example.mask.includes(1)) {
      numDropped++;
      continue;
    }
    if (example.boundaryMerged) numBoundaryMerged++;
    longest = Math.max(longest, example.inputIds.length);
    builder.add(example);
  }
  const dataset = builder.build();
  if (dataset.length === 0) {
    throw new FileFormatError(
      path,
      numDropped > 0 ? `none of its ${numDropped} examples has a token to learn` : 'no examples',
    );
  }
  const { length: numExamples, numTokens, numLabels } = dataset;
  return {
    dataset,
    report: { file: path, numExamples, numTokens, numLabels, longest, numTruncated, numDropped, numBoundaryMerged },
  };
}
