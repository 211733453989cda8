// `npm run check`: what can be said of the code and of the package without running them. Needs the npm packages, and neither
// network nor addon. Also the first part of `npm test`.
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { lastLines, run, SetupError, step, typescript } from './setup.mjs';

const bin = fileURLToPath(new URL('../node_modules/.bin/', import.meta.url));

/** Runs a tool. SetupError with what it said where it fails. */
function tool(file, ...args) {
  const done = run(file, args, { env: { ...process.env, NO_COLOR: '1', npm_config_update_notifier: 'false' } });
  if (!done.ok) throw new SetupError(`${lastLines(done.text, 100)}\nThis failed: ${[file, ...args].join(' ')}`);
  return done.text;
}

const steps = [
  ['lint and format', () => tool(`${bin}biome`, 'check', '--error-on-warnings')],
  // Tests too: vitest takes types away without looking at them.
  ['types', () => tool(`${bin}tsc`, '-p', 'tsconfig.json')],
  ['dist', (_, busy) => typescript(busy)],
  ['pack', (folder) => tool('npm', 'pack', '--ignore-scripts', '--loglevel=error', '--pack-destination', folder)],
  ['publint', (folder) => tool(`${bin}publint`, '--strict', tarball(folder))],
  // CommonJS gets ES modules, which every Node of `engines` lets it require.
  ['types as packed', (folder) => tool(`${bin}attw`, tarball(folder), ...resolution)],
];

const resolution = ['--profile', 'node16', '--ignore-rules', 'cjs-resolves-to-esm', '--no-definitely-typed'];

function tarball(folder) {
  const name = readdirSync(folder).find((file) => file.endsWith('.tgz'));
  if (!name) throw new SetupError('there is no tarball');
  return join(folder, name);
}

/** All steps, whatever fails: how many passed and failed. */
export async function check() {
  console.log('Checking');
  const folder = mkdtempSync(join(tmpdir(), 'rankzero-check-'));
  const count = { passed: 0, failed: 0 };
  try {
    for (const [name, work] of steps) {
      let failure;
      await step(name, async (busy) => {
        try {
          busy('checking');
          await work(folder, busy);
          count.passed++;
          return 'passed';
        } catch (error) {
          if (!(error instanceof SetupError)) throw error;
          failure = error;
          count.failed++;
          return 'failed';
        }
      });
      if (failure) console.error(`\n${failure.message}\n`);
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  console.log();
  return count;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { failed } = await check();
  process.exitCode = failed === 0 ? 0 : 1;
}
