// Values of an environment, and what the variables of a launcher say about a process: its place among the ranks of a job, or
// the place of its host among the hosts of one.
import type { Variables } from '../../environment.ts';

/** The variables of a launcher are incomplete, wrong, or not those of a rank. */
export class EnvironmentError extends Error {
  readonly code = 'ERR_ENVIRONMENT';
}

/** The place of a process that is a rank. */
export interface Place {
  rank: number;
  worldSize: number;
  localRank: number;
  /** Ranks on this host, which may differ from those of other hosts. */
  localWorldSize: number;
  /** Number of hosts, and which of them this is, where the launcher says so. */
  numNodes?: number | undefined;
  node?: number | undefined;
  /** Ranks on each host, in the order of hosts, where the launcher says so. */
  ranksPerNode?: readonly number[] | undefined;
}

/** A value, and the flag or variable that it is from. */
export interface Sourced<T> {
  value: T;
  source: string;
}

/** How many ranks a launcher starts on its host: a number, or what to count there. */
export type NumRanks = number | 'gpu' | 'cpu' | 'auto';

/** The place of a host: what the launcher that runs on it, once, needs to know. What nobody said is undefined. */
export interface NodeEnvironment {
  nnodes: Sourced<number>;
  nodeRank: Sourced<number>;
  nproc: Sourced<NumRanks> | undefined;
  masterAddr: Sourced<string> | undefined;
  masterPort: Sourced<number> | undefined;
}

export const defaultPort = 29500;

export const isLoopback = (host: string): boolean =>
  host === 'localhost' || host === '::1' || host.startsWith('127.') || host.startsWith('::ffff:127.');

export function readInteger(env: Variables, name: string, least: number, most: number): number {
  const text = env[name];
  const value = Number(text);
  if (text === undefined || text.trim() === '' || !Number.isInteger(value) || value < least || value > most) {
    const range = most === Number.MAX_SAFE_INTEGER ? `of ${least} or more` : `from ${least} to ${most}`;
    throw new EnvironmentError(
      `${name} must be a whole number ${range} but is ${text === undefined ? 'not set' : `"${text}"`}`,
    );
  }
  return value;
}

export const count = (env: Variables, name: string): number => readInteger(env, name, 1, Number.MAX_SAFE_INTEGER);
export const port = (env: Variables, name: string): number => readInteger(env, name, 1, 65535);

/** The first of `names` that is set and not empty. */
export const firstSet = (env: Variables, ...names: string[]): string | undefined => names.find((name) => env[name]);

/** A number of ranks, or what to count. */
export function readNumRanks(env: Variables, name: string): NumRanks {
  const text = env[name]!.trim();
  return text === 'gpu' || text === 'cpu' || text === 'auto' ? text : count(env, name);
}
