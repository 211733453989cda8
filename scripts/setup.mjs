// All that stands between a fresh clone and a run: system packages, npm packages, addon, compiled TypeScript.
// Each step looks first and does nothing where nothing is to do. Used by `npm run quickstart`, `npm test` and `npm run check`.
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import {
  installCommand,
  missingOptional,
  missingPrerequisites,
  nodeIsSupported,
  packageManager,
} from './prerequisites.mjs';

const root = fileURLToPath(new URL('..', import.meta.url));
const terminal = process.stdout.isTTY === true;

/** What the user must mend; shown without a stack. */
export class SetupError extends Error {}

export function run(command, args, options = {}) {
  const result = spawnSync(command, args, { cwd: root, encoding: 'utf8', maxBuffer: 1 << 28, ...options });
  return { ok: result.status === 0, text: `${result.stdout ?? ''}${result.stderr ?? ''}${result.error ?? ''}` };
}

export const lastLines = (text, count = 30) => text.trimEnd().split('\n').slice(-count).join('\n');

/** Prints `name  result  time`; work that takes a while is announced before it begins. */
export async function step(name, work) {
  const label = `  ${name.padEnd(16)}`;
  const start = performance.now();
  let announced = false;
  const busy = (what) => {
    if (terminal) process.stdout.write(`\r\x1b[K${label}${what} …`);
    else if (!announced) console.log(`${label}${what} …`);
    announced = true;
  };
  const result = await work(busy);
  const seconds = (performance.now() - start) / 1000;
  const time = announced ? ` in ${seconds.toFixed(1)} s` : '';
  console.log(`${terminal ? '\r\x1b[K' : ''}${label}${result}${time}`);
}

/** As root on Debian and Ubuntu installs what is missing; what only jobs of several hosts need may stay away. */
async function systemPackages(busy) {
  const missing = missingPrerequisites();
  const optional = missingOptional();
  if (missing.length + optional.length === 0) return 'present';
  const installs = process.getuid() === 0 && packageManager() === 'apt';
  if (!installs && missing.length > 0) {
    const names = missing.map((m) => `  - ${m.what}`).join('\n');
    throw new SetupError(
      `This machine lacks:\n${names}\nInstall with:\n  ${installCommand([...missing, ...optional])}\nand start again.`,
    );
  }
  const without = `present; jobs of several hosts need one more: ${installCommand(optional)}`;
  if (!installs) return without;
  const packages = [...missing, ...optional].map((m) => m.apt);
  busy(`installing ${packages.join(' ')}`);
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  const install = (names) => run('apt-get', ['install', '-y', '--no-install-recommends', ...names], { env });
  let done = install(packages);
  if (!done.ok) {
    busy('apt-get update');
    run('apt-get', ['update'], { env });
    done = install(packages);
  }
  if (!done.ok && missing.length > 0 && optional.length > 0) done = install(missing.map((m) => m.apt));
  if (missingPrerequisites().length > 0)
    throw new SetupError(`${lastLines(done.text)}\nThis was not enough: ${installCommand(missing)}`);
  return missingOptional().length > 0 ? without : `installed ${packages.join(' ')}`;
}

/** True where node_modules holds what package-lock.json asks for (optional packages of other platforms aside). */
function npmPackagesAreCurrent() {
  const read = (path) => JSON.parse(readFileSync(join(root, path), 'utf8')).packages;
  if (!existsSync(join(root, 'node_modules', '.package-lock.json'))) return false;
  const wanted = read('package-lock.json');
  const present = read('node_modules/.package-lock.json');
  return Object.entries(wanted).every(
    ([path, { version, optional }]) => path === '' || optional || present[path]?.version === version,
  );
}

async function npmPackages(busy) {
  if (npmPackagesAreCurrent()) return 'present';
  busy('installing');
  const done = run('npm', ['ci', '--ignore-scripts', '--no-audit', '--no-fund', '--loglevel=error']);
  // npm says why first, and then explains itself at length.
  if (!done.ok) throw new SetupError(`${done.text.split('\n').slice(0, 15).join('\n')}\nThis failed: npm ci`);
  return 'installed';
}

async function addon(busy) {
  // Not before `npm ci`: it loads node-gyp-build.
  const { buildAddon, loadError, reasonToBuild } = await import('./addon.mjs');
  if (reasonToBuild() === undefined) return 'present';
  busy('building, about a minute');
  let log = '';
  try {
    await buildAddon((text) => {
      log += text;
      // `[ 42%]` of make, `[12/54]` of ninja.
      const progress = /\[( *\d+%|\d+\/\d+)\][^[]*$/.exec(log)?.[1];
      if (progress && terminal) busy(`building, ${progress.trim()}`);
    });
  } catch (error) {
    throw new SetupError(`${lastLines(log, 60)}\n${error.message}. To see all of it: npm run build:native`);
  }
  const error = loadError();
  if (error !== undefined) throw new SetupError(`The addon was built, but does not load: ${error}`);
  return 'built';
}

function files(folder, suffix) {
  if (!existsSync(folder)) return [];
  return readdirSync(folder, { recursive: true })
    .filter((name) => name.endsWith(suffix) && !name.endsWith('.d.ts'))
    .map((name) => join(folder, name));
}

function distIsCurrent() {
  const sources = files(join(root, 'src'), '.ts');
  const outputs = files(join(root, 'dist'), '.js');
  if (outputs.length !== sources.length) return false;
  const time = (path) => statSync(path).mtimeMs;
  const inputs = [...sources, join(root, 'tsconfig.json'), join(root, 'tsconfig.build.json')];
  return Math.max(...inputs.map(time)) < Math.min(...outputs.map(time));
}

/** Compiles what `dist` is behind of. */
export async function typescript(busy) {
  if (distIsCurrent()) return 'present';
  busy('compiling');
  rmSync(join(root, 'dist'), { recursive: true, force: true });
  const done = run(process.execPath, [join(root, 'node_modules/typescript/bin/tsc'), '-p', 'tsconfig.build.json']);
  if (!done.ok) {
    // tsc writes its output in spite of type errors; left there it would look current.
    rmSync(join(root, 'dist'), { recursive: true, force: true });
    throw new SetupError(`${lastLines(done.text)}\nThis failed: npm run build`);
  }
  return 'compiled';
}

/** Brings the checkout up to date, or ends the process with what the user must do. */
export async function setup() {
  console.log(`Setting up rankzero (Node ${process.versions.node})`);
  try {
    if (process.platform !== 'linux') throw new SetupError(`rankzero runs on Linux; this is ${process.platform}.`);
    if (!nodeIsSupported()) {
      throw new SetupError(`rankzero needs Node ^20.19 or >=22.12; this is ${process.versions.node}.`);
    }
    await step('system packages', systemPackages);
    await step('npm packages', npmPackages);
    await step('native addon', addon);
    await step('TypeScript', typescript);
  } catch (error) {
    if (!(error instanceof SetupError)) throw error;
    console.error(`\n\n${error.message}\n`);
    process.exit(1);
  }
  console.log();
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await setup();
