// The seed of parameter initialisation. Draws are counter-based: element i of a parameter depends on (seed, name, i) alone,
// so that every world size and sharding gives the same bits.
import { processState } from '../core/context.ts';

interface Random {
  seed: bigint;
  /** What the program asked for last. */
  given: bigint | undefined;
}

const random: Random = processState<Random>('random', 'the seed of initialisation', { seed: 0n, given: undefined });

/** Sets the seed of all initialisation from now on, as torch.manual_seed. A whole number in [0, 2^64). */
export function manualSeed(value: number | bigint): void {
  const big = BigInt(value);
  if (big < 0n || big >= 1n << 64n) throw new RangeError(`a seed must lie in [0, 2^64) but is ${value}`);
  random.seed = big;
  random.given = big;
}

/** @internal What the program asked for last, by manualSeed or by randomSeed of init. */
export function givenSeed(): bigint | undefined {
  return random.given;
}

/** @internal As manualSeed, for a run within the program: givenSeed stays. */
export function seedRun(value: number): void {
  random.seed = BigInt(value);
}

/** @internal */
export function initialSeed(): bigint {
  return random.seed;
}
