// `npm run test:clusters`: installs what the tests of Slurm and Open MPI need and `npm test` does without, then runs them, and that
// of SageMaker. As root on Debian or Ubuntu. `npm test` runs those whose packages are there.
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { run, SetupError, setup } from './setup.mjs';

const packages = ['slurm-wlm', 'munge', 'openmpi-bin'];
const programs = ['slurmctld', 'munged', 'mpirun'];
const missing = packages.filter((_, i) => !run('sh', ['-c', `command -v ${programs[i]}`]).ok);

await setup();
if (missing.length > 0) {
  console.log(`Installing ${missing.join(' ')}`);
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  const done = run('apt-get', ['install', '-y', '--no-install-recommends', ...missing], { env });
  if (!done.ok) throw new SetupError(`${done.text}\nThis failed: apt-get install -y ${missing.join(' ')}`);
}
const vitest = join(import.meta.dirname, '../node_modules/vitest/vitest.mjs');
const tests = ['slurm', 'mpirun', 'sagemaker'].map((name) => `test/hosts/${name}.test.ts`);
const { status } = spawnSync(process.execPath, [vitest, 'run', '--project', 'hosts', ...tests], {
  cwd: join(import.meta.dirname, '..'),
  stdio: 'inherit',
});
process.exitCode = status ?? 1;
