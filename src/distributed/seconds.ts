// How long the processes of a job wait for each other, in seconds.
import { settings } from '../environment.ts';
import { EnvironmentError } from './launchers/values.ts';

function seconds(name: string, text: string | number | undefined, otherwise: number): number {
  const value = text === undefined || text === '' ? otherwise : Number(text);
  if (!(value > 0)) throw new EnvironmentError(`${name} must be a number of seconds above 0 but is "${text}"`);
  return value;
}

/** Without progress of any rank, and for all to come. RANKZERO_TIMEOUT, else 1800. */
export const timeoutSeconds = (option?: number): number =>
  seconds('RANKZERO_TIMEOUT', option ?? settings.timeout, 1800);

/** Of silence, after which a process or a host counts as dead. RANKZERO_HEARTBEAT_TIMEOUT, else 60. */
export const heartbeatSeconds = (): number => seconds('RANKZERO_HEARTBEAT_TIMEOUT', settings.heartbeatTimeout, 60);

/**
 * Between SIGTERM to a launcher and SIGKILL to its ranks. RANKZERO_GRACE, else 25: less than the 30 that Slurm and Kubernetes
 * leave to a job unless told otherwise.
 */
export const graceSeconds = (): number => seconds('RANKZERO_GRACE', settings.grace, 25);
