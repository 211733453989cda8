// The flags that say where a launcher stands among the hosts of a job, for every command that starts ranks; torchrun's
// spellings are read too.
import { flagNames, type LaunchFlags } from '../distributed/launch_plan.ts';

/** Wrong flags; the message has one line for each. */
export class LaunchFlagError extends Error {}

const spellings: Readonly<Record<string, string>> = {
  '--nproc-per-node': '--nproc',
  '--nproc_per_node': '--nproc',
  '--node_rank': '--node-rank',
  '--master-addr': '--master-address',
  '--master_addr': '--master-address',
  '--master_address': '--master-address',
  '--master_port': '--master-port',
};

/** An argument with our name of the flag, if it is one of torchrun's. */
export function ownSpelling(argument: string): string {
  const [name = ''] = argument.split('=', 1);
  const own = spellings[name];
  return own === undefined ? argument : own + argument.slice(name.length);
}

export type LaunchKey = keyof LaunchFlags;

const ranges: Readonly<Record<Exclude<LaunchKey, 'masterAddress'>, readonly [least: number, most: number]>> = {
  nproc: [1, 1024],
  nnodes: [1, 65536],
  nodeRank: [0, 65535],
  masterPort: [1, 65534],
};

/**
 * Checks values as they were written, undefined for those that were not.
 *
 * @param where names a key as the user wrote it.
 */
export function parseLaunchFlags(
  given: Readonly<Partial<Record<LaunchKey, unknown>>>,
  where: (key: LaunchKey) => string = (key) => flagNames[key],
): LaunchFlags {
  const problems: string[] = [];
  const parsed: Record<string, unknown> = {};
  for (const key of Object.keys(flagNames) as LaunchKey[]) {
    const value = given[key];
    if (value === undefined || value === null) continue;
    if (key === 'masterAddress') {
      if (typeof value === 'string' && value !== '') parsed[key] = value;
      else problems.push(`${where(key)} needs HOST, HOST:PORT or [IPv6]:PORT but got ${show(value)}`);
      continue;
    }
    const [least, most] = ranges[key];
    const number = typeof value === 'string' && value.trim() !== '' ? Number(value) : value;
    if (key === 'nproc' && (value === 'gpu' || value === 'cpu' || value === 'auto')) parsed[key] = value;
    else if (typeof number === 'number' && Number.isInteger(number) && number >= least && number <= most)
      parsed[key] = number;
    else {
      const words = key === 'nproc' ? ', gpu or auto' : '';
      problems.push(`${where(key)} needs a whole number from ${least} to ${most}${words} but got ${show(value)}`);
    }
  }
  if (problems.length > 0) throw new LaunchFlagError(problems.join('\n'));
  return parsed as LaunchFlags;
}

const show = (value: unknown): string => (value === true || value === '' ? 'nothing' : JSON.stringify(value));
