// The state of the native addon and how to build it: shared by install.mjs and setup.mjs.
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, readdirSync, statSync, utimesSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { missingOptional } from './prerequisites.mjs';

export const root = fileURLToPath(new URL('..', import.meta.url));
const require = createRequire(import.meta.url);

/** Newest modification time below `path`, in ms; 0 if it does not exist. */
export function newest(path) {
  if (!existsSync(path)) return 0;
  const stat = statSync(path);
  if (!stat.isDirectory()) return stat.mtimeMs;
  return Math.max(stat.mtimeMs, ...readdirSync(path).map((name) => newest(join(path, name))));
}

/** Error text when the addon does not load. In a child: a broken binary may kill the process that loads it. */
export function loadError() {
  const script = `require(${JSON.stringify(require.resolve('node-gyp-build'))})(${JSON.stringify(root)})`;
  const child = spawnSync(process.execPath, ['-e', script], { encoding: 'utf8' });
  if (child.status === 0) return undefined;
  return /^\w*Error: .*$/m.exec(child.stderr)?.[0] ?? `${child.signal ?? 'failed'}: ${child.stderr.trim()}`;
}

const built = join(root, 'build', 'Release', 'rankzero.node');

/** The folder of the addon that loads, and whether the module for several hosts is beside it. */
function hasEngine() {
  const path = require('node-gyp-build').path(root);
  return existsSync(join(path, '..', 'rankzero_gloo.so'));
}

/** Why the addon has to be built; undefined where it need not be. The module for several hosts is built where Gloo's headers are. */
export function reasonToBuild() {
  if (isStale()) return 'its sources are newer than the build';
  const error = loadError();
  if (error !== undefined) return error;
  return hasEngine() || missingOptional().length > 0
    ? undefined
    : "Gloo's headers are there, and the module for several hosts is not";
}

/** True in a checkout whose C++ is newer than its build. A package from the registry has no .git and is never stale. */
export function isStale() {
  if (!existsSync(join(root, '.git')) || !existsSync(built)) return false;
  const sources = ['binding', 'cpp', 'cmake', 'CMakeLists.txt'].map((name) => newest(join(root, name)));
  return Math.max(...sources) > statSync(built).mtimeMs;
}

/**
 * Configures and compiles with cmake-js, one job for each core. `onOutput` gets the compiler's text as it comes;
 * without it the text goes to the terminal.
 */
export function buildAddon(onOutput) {
  const cli = join(require.resolve('cmake-js/package.json'), '..', 'bin', 'cmake-js');
  const args = [cli, 'compile', '--parallel', String(availableParallelism()), '--log-level', 'warn'];
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, args, {
      cwd: root,
      stdio: onOutput ? ['ignore', 'pipe', 'pipe'] : 'inherit',
    });
    child.stdout?.on('data', (data) => onOutput(String(data)));
    child.stderr?.on('data', (data) => onOutput(String(data)));
    child.on('error', reject);
    child.on('exit', (code) => {
      if (code !== 0) return reject(new Error('building the addon failed'));
      // Nothing was linked if only time stamps had changed; without this the build would stay stale.
      utimesSync(built, new Date(), new Date());
      resolve();
    });
  });
}
