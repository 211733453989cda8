// SageMaker's training containers: a file that lists the hosts of the job; its toolkit adds SM_* variables. One program is
// started in each container.
import { existsSync, readFileSync } from 'node:fs';
import type { Variables } from '../../environment.ts';
import { EnvironmentError, type NodeEnvironment } from './values.ts';

const defaultFile = '/opt/ml/input/config/resourceconfig.json';

interface Hosts {
  current: string;
  hosts: string[];
  source: string;
}

function checked(current: unknown, hosts: unknown, source: string): Hosts {
  if (typeof current !== 'string' || !Array.isArray(hosts) || !hosts.every((host) => typeof host === 'string'))
    throw new EnvironmentError(`${source} must have the current host and a list of hosts`);
  if (!hosts.includes(current))
    throw new EnvironmentError(`${source}: the current host ${current} is not among the hosts ${hosts.join(', ')}`);
  return { current, hosts: hosts.toSorted(), source };
}

function parse(text: string, source: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new EnvironmentError(`${source} is not JSON: ${(cause as Error).message}`, { cause });
  }
}

function readHosts(env: Variables): Hosts | undefined {
  const file = env.RANKZERO_RESOURCE_CONFIG || defaultFile;
  if (existsSync(file)) {
    const config = parse(readFileSync(file, 'utf8'), file) as { current_host?: unknown; hosts?: unknown } | null;
    return checked(config?.current_host, config?.hosts, file);
  }
  if (!env.SM_HOSTS || !env.SM_CURRENT_HOST) return undefined;
  return checked(env.SM_CURRENT_HOST, parse(env.SM_HOSTS, 'SM_HOSTS'), 'SM_HOSTS');
}

/** The place of this container, if it is one of SageMaker's: hosts count in the order of their names. */
export function sageMakerNode(env: Variables): NodeEnvironment | undefined {
  const found = readHosts(env);
  if (!found) return undefined;
  const { current, hosts, source } = found;
  const gpus = Number(env.SM_NUM_GPUS ?? 0);
  return {
    nnodes: { value: hosts.length, source },
    nodeRank: { value: hosts.indexOf(current), source },
    nproc: gpus > 0 ? { value: gpus, source: 'SM_NUM_GPUS' } : undefined,
    masterAddr: { value: hosts[0]!, source },
    masterPort: undefined,
  };
}
