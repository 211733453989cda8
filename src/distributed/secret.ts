// The job's secret: what admits a rank to the rendezvous store. From RANKZERO_SECRET (the launcher makes it); else, when
// all ranks are on one host, from a file that only this user can read. Several hosts without one are refused.
import { randomBytes } from 'node:crypto';
import { lstatSync, mkdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
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
  const given = env.RANKZERO_SECRET;
  if (given !== undefined && given !== '') return { secret: given, secretFile: '', forget: () => {} };
  if (!environment.isOneHost) {
    throw new EnvironmentError(
      `the ranks of this job are on several hosts (rank 0 on ${environment.masterAddr}) and have no secret: ` +
        'set RANKZERO_SECRET to the same random text on all of them, e.g. the output of `openssl rand -hex 32`',
    );
  }
  const secretFile = join(privateFolder(), String(environment.masterPort));
  if (environment.rank !== 0) return { secret: '', secretFile, forget: () => {} };
  const secret = randomBytes(32).toString('hex');
  const temporary = `${secretFile}.${process.pid}`;
  rmSync(temporary, { force: true });
  writeFileSync(temporary, secret, { mode: 0o600, flag: 'wx' });
  renameSync(temporary, secretFile);
  return { secret, secretFile: '', forget: () => rmSync(secretFile, { force: true }) };
}
