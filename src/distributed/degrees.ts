// Whether degrees of parallelism fit a number of ranks, and which ones would.

/** The next of `possible` (ascending) on either side of `wanted`, for messages. */
export function neighbours(possible: readonly number[], wanted: number): string {
  const sides = [possible.filter((degree) => degree < wanted).at(-1), possible.find((degree) => degree > wanted)];
  return sides.filter((degree) => degree !== undefined).join(' and ');
}

/** Divisors of `n`, ascending. */
export function divisors(n: number): number[] {
  return Array.from({ length: n }, (_, i) => i + 1).filter((d) => n % d === 0);
}

/** Errors when degrees do not fit `worldSize`; names the nearest ones that do. */
export function checkDegrees(worldSize: number, tp: number, shard: number): void {
  const nearest = (n: number, wanted: number): string => neighbours(divisors(n), wanted);
  if (worldSize % tp !== 0)
    throw new RangeError(
      `the tensor-parallel degree ${tp} does not divide the ${worldSize} ranks; the nearest that do: ${nearest(worldSize, tp)}`,
    );
  const dp = worldSize / tp;
  if (shard > 0 && dp % shard !== 0)
    throw new RangeError(
      `the shard degree ${shard} does not divide the ${dp} data-parallel ranks (${worldSize} ranks, tensor-parallel degree ${tp}); ` +
        `the nearest that do: ${nearest(dp, shard)}`,
    );
}
