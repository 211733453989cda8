// The job's secret: what admits a rank to the rendezvous store, and a launcher to the others. From RANKZERO_SECRET (the
// launcher sets it for its ranks), RANKZERO_SECRET_FILE, or where schedulers mount secrets; else, when all ranks are on one
// host, from a file that only this user can read. Several hosts without one are refused. No error has it in its text.
import { randomBytes } from 'node:crypto';
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Variables, variables } from '../environment.ts';
import { EnvironmentError, type RankEnvironment } from './environment.ts';

export interface JobSecret {
  /** The secret itself, or empty when it is in the file. */
  secret: string;
  /** The file that holds it, or empty. Rank 0 writes it; every rank reads it until the store lets it in. */
  secretFile: string;
  /** Removes the file, once all ranks are in. */
  forget(): void;
}

/**
 * Where secrets are mounted into containers: Kubernetes and Docker do below /run/secrets, with files that every user of the
 * container may read; SageMaker has channels. A file elsewhere must be its user's alone.
 */
const mounts = ['/run/secrets/', '/var/run/secrets/', '/opt/ml/input/data/'];
/** Looked for when no variable says where it is. */
const mountedFiles = ['/run/secrets/rankzero/secret', '/opt/ml/input/data/rankzero-secret/secret'];

function readSecretFile(path: string, why: string): string {
  let text: string;
  try {
    const real = realpathSync(path);
    const { mode, uid } = statSync(real);
    const isMounted = mounts.some((mount) => path.startsWith(mount) || real.startsWith(mount));
    const user = process.getuid?.() ?? 0;
    if (!isMounted && ((mode & 0o077) !== 0 || (uid !== user && uid !== 0)))
      throw new EnvironmentError(
        `${path} (${why}) must be readable by its user alone (chmod 600) and belong to user ${user}, but has mode ` +
          `${(mode & 0o777).toString(8)} and owner ${uid}; only below ${mounts.join(', ')} it may be as the scheduler made it`,
      );
    text = readFileSync(real, 'utf8').trim();
  } catch (cause) {
    if (cause instanceof EnvironmentError) throw cause;
    throw new EnvironmentError(`${path} (${why}) cannot be read: ${(cause as Error).message}`, { cause });
  }
  if (text === '') throw new EnvironmentError(`${path} (${why}) is empty: it must have the secret of the job`);
  return text;
}

/** The secret that a variable or a mount gives; undefined without one. Errors: ERR_ENVIRONMENT for a file that cannot be used. */
export function givenSecret(env: Variables): string | undefined {
  if (env.RANKZERO_SECRET) return env.RANKZERO_SECRET;
  if (env.RANKZERO_SECRET_FILE) return readSecretFile(env.RANKZERO_SECRET_FILE, 'RANKZERO_SECRET_FILE');
  const mounted = mountedFiles.find((path) => existsSync(path));
  return mounted === undefined ? undefined : readSecretFile(mounted, 'a mounted secret');
}

/** As givenSecret, for a job on several hosts, which needs one. */
export function hostsSecret(env: Variables, masterAddr: string): string {
  const secret = givenSecret(env);
  if (secret !== undefined) return secret;
  throw new EnvironmentError(
    `the ranks of this job are on several hosts (rank 0 on ${masterAddr}) and have no secret: ` +
      'set RANKZERO_SECRET to the same random text on all of them, e.g. the output of `openssl rand -hex 32`, or ' +
      'RANKZERO_SECRET_FILE to a file of mode 0600 that has it',
  );
}

function privateFolder(): string {
  const uid = process.getuid?.() ?? 0;
  const folder = join(tmpdir(), `rankzero-${uid}`);
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  const stat = lstatSync(folder);
  if (!stat.isDirectory() || stat.uid !== uid || (stat.mode & 0o077) !== 0) {
    throw new EnvironmentError(
      `${folder} must be a folder of mode 0700 that belongs to user ${uid}, but has mode ${(stat.mode & 0o777).toString(8)} and owner ${stat.uid}. ` +
        'Remove it, or set RANKZERO_SECRET on all ranks',
    );
  }
  return folder;
}

export function jobSecret(environment: RankEnvironment, env: Variables = variables()): JobSecret {
  const given = environment.isOneHost ? givenSecret(env) : hostsSecret(env, environment.masterAddr);
  if (given !== undefined) return { secret: given, secretFile: '', forget: () => {} };
  const secretFile = join(privateFolder(), String(environment.masterPort));
  if (environment.rank !== 0) return { secret: '', secretFile, forget: () => {} };
  const secret = randomBytes(32).toString('hex');
  const temporary = `${secretFile}.${process.pid}`;
  rmSync(temporary, { force: true });
  writeFileSync(temporary, secret, { mode: 0o600, flag: 'wx' });
  renameSync(temporary, secretFile);
  return { secret, secretFile: '', forget: () => rmSync(secretFile, { force: true }) };
}
