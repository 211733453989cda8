// What this process holds beside what a program has in its hands: counters, streams that were made, the group that was joined.
// All of it lies here under names, so that it can be looked at; no module has variables of its own. One copy of the package has
// one context: a worker thread has its own, as it has its own addon.

interface Held {
  /** In a few words, for people. */
  readonly holds: string;
  readonly state: object;
}

const context = new Map<string, Held>();

/** The state `name` of this process, from `initial` on: for one module, which calls this once and keeps what it gets. */
export function processState<T extends object>(name: string, holds: string, initial: T): T {
  if (context.has(name)) throw new Error(`two modules hold process state "${name}"`);
  context.set(name, { holds, state: initial });
  return initial;
}

/** Everything that this process holds, by name. */
export function processStates(): ReadonlyMap<string, Held> {
  return context;
}
