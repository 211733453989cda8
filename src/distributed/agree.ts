// Work that any rank may fail at (a full disk, a broken file) and that counts only if it succeeded everywhere: a failure of
// one rank becomes the same error on all of them, so that none waits for a rank that has given up.
import { allGatherJson, broadcastJson } from './exchange.ts';
import type { ProcessGroup } from './process_group.ts';

/** An error of some rank, thrown on every rank of the group. */
export class RankError extends Error {
  override name = 'RankError';
  /** World rank of the first rank that failed. */
  readonly rank: number;
  readonly code: string | undefined;

  constructor(rank: number, message: string, code: string | undefined, options?: ErrorOptions) {
    super(message, options);
    this.rank = rank;
    this.code = code;
  }
}

/**
 * Runs `fn` on this rank and returns its result if it succeeded on every rank of `group`. If not, `cleanUp` runs on every
 * rank, and no rank throws before it is over on all of them: the first to throw may end the job. Collective; blocks for the
 * others. What `cleanUp` throws is dropped.
 */
export async function onAllRanks<T>(
  group: ProcessGroup,
  what: string,
  fn: () => T | Promise<T>,
  cleanUp?: () => unknown,
): Promise<T> {
  let result: T | undefined;
  let failure: unknown;
  let failed = false;
  try {
    result = await fn();
  } catch (error) {
    failed = true;
    failure = error;
  }
  const own = failed
    ? { message: String((failure as Error).message ?? failure), code: (failure as { code?: string }).code }
    : null;
  const tidy = async (): Promise<void> => {
    try {
      await cleanUp?.();
    } catch {
      // The error that led here says more.
    }
  };
  let all: (typeof own)[];
  try {
    all = allGatherJson(group, own);
  } catch (error) {
    await tidy(); // a rank died: there is nobody to agree with
    throw error;
  }
  const first = all.findIndex((outcome) => outcome !== null);
  if (first < 0) return result as T;
  if (cleanUp) {
    await tidy();
    allGatherJson(group, null);
  }
  const rank = group.ranks[first]!;
  const { message, code } = all[first]!;
  throw new RankError(rank, `${what}${group.size > 1 ? ` failed on rank ${rank}` : ' failed'}: ${message}`, code, {
    cause: failure,
  });
}

/** What rank 0 of `group` returned from `fn`, as JSON; the others do not run it. Collective; blocks. */
export async function fromRank0<T>(group: ProcessGroup, what: string, fn: () => T | Promise<T>): Promise<T> {
  const value = await onAllRanks(group, what, async () => (group.rank === 0 ? ((await fn()) as T) : undefined));
  return broadcastJson(group, value);
}
