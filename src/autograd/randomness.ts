// What random ops of a forward draw by. A draw is counter-based: it depends on the seed, the step, the name of its place in the model,
// and for each element on the example in the step's global batch, the position in it, and the column. So it is the same however
// batch, rows and columns are divided over ranks and passes, and a forward that runs again in backward draws the same again.
import { processState } from '../core/context.ts';
import { native } from '../native.ts';
import { initialSeed } from '../tensor/random.ts';
import { track } from '../tensor/scope.ts';
import { computeDevice } from '../tensor/streams.ts';
import { Tensor } from '../tensor/tensor.ts';

export interface RandomnessOptions {
  /** Optimizer steps done, or any other number that no two batches share. */
  step: number;
  /** The number of each sequence of the forward within the batches of the step, of all ranks and passes. Default 0, 1, … */
  examples?: ArrayLike<number> | undefined;
  /** Default: that of initialisation (`manualSeed`, or a run's). */
  seed?: number | bigint | undefined;
  /** Borders of the sequences, for modules that are run outside a model's forward, which has its own. */
  cuSeqlens?: ArrayLike<number> | undefined;
}

/** @internal */
export interface Randomness {
  readonly seed: bigint;
  readonly step: number;
  readonly examples: ArrayLike<number> | undefined;
  /** Of the rows of the forward that runs. */
  readonly rows: RowNumbers | undefined;
}

const random: { current: Randomness | undefined } = processState('randomness', 'what random ops draw by', {
  current: undefined,
});

// 22 bits each for example and position; behind them 20 for the column (cpp/ops/dropout.h).
const positionBits = 22;
const most = 2 ** positionBits;

/** @internal Numbers of the rows of a forward, made when they are first wanted. */
export class RowNumbers {
  readonly length: number;
  private readonly cuSeqlens: ArrayLike<number>;
  private readonly examples: ArrayLike<number> | undefined;
  private made: Tensor | undefined;

  /** Rows of sequences with borders `cuSeqlens`; those behind `examples` have the last number. */
  constructor(cuSeqlens: ArrayLike<number>, examples: ArrayLike<number> | undefined) {
    this.cuSeqlens = cuSeqlens;
    this.examples = examples;
    this.length = cuSeqlens[cuSeqlens.length - 1] ?? 0;
  }

  /** (rows) int64; of the innermost scope. */
  tensor(): Tensor {
    if (!this.made || this.made.isDisposed) {
      this.made = Tensor.empty([this.length], 'int64', 'other', computeDevice());
      native.tensorWrite(this.made.handle, this.numbers());
      track(this.made);
    }
    return this.made;
  }

  private numbers(): BigInt64Array {
    const words = new Int32Array(2 * this.length); // little-endian halves
    const { cuSeqlens, examples } = this;
    for (let s = 0; s + 1 < cuSeqlens.length; s++) {
      const example = examples ? (examples[s] ?? most - 1) : s;
      const [begin, end] = [cuSeqlens[s]!, cuSeqlens[s + 1]!];
      if (!(example >= 0 && example < most && end - begin <= most))
        throw new RangeError(
          `dropout: numbers of examples and positions are below ${most}, got example ${example} of ${end - begin} tokens`,
        );
      for (let row = begin; row < end; row++) {
        words[2 * row] = (example << positionBits) | (row - begin);
        words[2 * row + 1] = example >>> (32 - positionBits);
      }
    }
    return new BigInt64Array(words.buffer);
  }
}

/** Runs `fn` with the step and the examples that dropout draws by. Random draws of a backward are those of its forward. */
export function withRandomness<T>(options: RandomnessOptions, fn: () => T): T {
  const { step, examples, cuSeqlens } = options;
  if (!(Number.isSafeInteger(step) && step >= 0))
    throw new RangeError(`withRandomness: step must be a whole number of at least 0 but is ${step}`);
  const seed = options.seed === undefined ? initialSeed() : BigInt(options.seed);
  return during({ seed, step, examples, rows: cuSeqlens && new RowNumbers(cuSeqlens, examples) }, fn);
}

/** @internal Runs `fn`, whose rows are those of sequences with borders `cuSeqlens`. */
export function withSequences<T>(cuSeqlens: ArrayLike<number>, fn: () => T): T {
  const { current } = random;
  return current ? during({ ...current, rows: new RowNumbers(cuSeqlens, current.examples) }, fn) : fn();
}

/** @internal What holds now, for whoever runs a forward again. */
export function currentRandomness(): Randomness | undefined {
  return random.current;
}

/** @internal */
export function during<T>(randomness: Randomness | undefined, fn: () => T): T {
  const before = random.current;
  random.current = randomness;
  try {
    return fn();
  } finally {
    random.current = before;
  }
}
