// Where the secret of a job comes from, and which files are refused.
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { rankEnvironment } from '../../src/distributed/environment.ts';
import { givenSecret, jobSecret } from '../../src/distributed/secret.ts';

const folder = mkdtempSync(join(tmpdir(), 'rankzero-secret-'));
afterAll(() => rmSync(folder, { recursive: true }));

const near = rankEnvironment({ RANK: '1', WORLD_SIZE: '2', MASTER_ADDR: '127.0.0.1', MASTER_PORT: '29500' });
const far = rankEnvironment({ RANK: '1', WORLD_SIZE: '2', MASTER_ADDR: 'node0', MASTER_PORT: '29500' });

it('comes from RANKZERO_SECRET, and is needed between hosts', () => {
  expect(jobSecret(near, { RANKZERO_SECRET: 's' }).secret).toBe('s');
  expect(() => jobSecret(far, {})).toThrow(
    /several hosts \(rank 0 on node0\) and have no secret: set RANKZERO_SECRET.*RANKZERO_SECRET_FILE/,
  );
});

it('comes from a file that nobody else can read', () => {
  const file = join(folder, 'secret');
  writeFileSync(file, 'of the file\n', { mode: 0o600 });
  const env = { RANKZERO_SECRET_FILE: file };
  expect(jobSecret(far, env).secret).toBe('of the file');
  expect(givenSecret({ ...env, RANKZERO_SECRET: 's' })).toBe('s');
  chmodSync(file, 0o640);
  expect(() => givenSecret(env)).toThrow(/must be readable by its user alone \(chmod 600\) .* has mode 640/);
  expect(() => givenSecret(env)).not.toThrow('of the file');
  writeFileSync(file, '\n');
  chmodSync(file, 0o600);
  expect(() => givenSecret(env)).toThrow('is empty');
  expect(() => givenSecret({ RANKZERO_SECRET_FILE: join(folder, 'none') })).toThrow('cannot be read');
});
