// Which steps of a run are profiled.

/** Steps as the log counts them, both included. */
export interface StepRange {
  first: number;
  last: number;
}

const warmUp = 2;
const length = 3;

/** `7` and `7-9`; undefined for anything else. */
export function parseSteps(text: string): StepRange | undefined {
  const [, from, to] = /^([1-9]\d*)(?:-([1-9]\d*))?$/.exec(text.trim()) ?? [];
  if (from === undefined) return undefined;
  const range = { first: Number(from), last: Number(to ?? from) };
  return range.last < range.first ? undefined : range;
}

/**
 * The steps to profile of a run that does the steps after `done` up to `total`. By default three after two of warm-up, or as
 * near to that as a shorter run comes. Error: the run does not do the wanted steps.
 */
export function stepsToProfile(wanted: string | undefined, done: number, total: number): StepRange | undefined {
  if (wanted === undefined) {
    const last = Math.min(total, done + warmUp + length);
    return last > done ? { first: Math.max(done + 1, last - length + 1), last } : undefined;
  }
  const range = parseSteps(wanted)!;
  if (range.first <= done || range.last > total) {
    throw new Error(`--profile-steps ${wanted}: this run does the steps ${done + 1} to ${total}`);
  }
  return range;
}
