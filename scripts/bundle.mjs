// `npm run bundle`: one folder for hosts without Node, compilers or network. Holds Node, the addon with the libraries that it
// needs, compiled JavaScript, run-time packages, benches and the quickstart; `run.sh` in it says what it does. Nothing in it
// names a place, so it may be moved. What is large is compressed, and unpacked by the first run.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join, relative, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { brotliCompressSync, gzipSync, constants as zlib } from 'node:zlib';
import { root } from './addon.mjs';
import { architecturesFor, nvccRelease } from './architectures.mjs';

const limit = 60e6;

const usage = `usage: node scripts/bundle.mjs [options]

  --out DIR              the folder to make, which is emptied before [out/bundle]
  --architectures LIST   of the GPUs, e.g. 90a [80, 90, 100 and 120, where nvcc has them]
  --addon FILE           take this addon and compile none
  --xz                   10 MB smaller, for hosts that have xz or python3 beside sh and gzip; taken where it must be

With nvcc the addon has the CUDA backend; without it, CPU ranks only. CUDACXX names another nvcc: what that of CUDA 12 compiled runs
on drivers from 525 on, what that of CUDA 13 compiled on drivers from 580 on.
`;

function readOptions() {
  const options = {
    out: { type: 'string' },
    architectures: { type: 'string' },
    addon: { type: 'string' },
    xz: { type: 'boolean' },
    help: { type: 'boolean' },
  };
  const { values } = parseArgs({ options });
  if (values.help) {
    process.stdout.write(usage);
    process.exit(0);
  }
  return {
    out: resolve(values.out ?? join(root, 'out/bundle')),
    architectures: values.architectures,
    addon: values.addon,
    nodeKind: values.xz ? 'xz' : 'gz',
  };
}

/** The addon to ship: compiled in a folder of its own, so that the checkout's stays what it is. */
function addonFor({ addon, architectures }) {
  if (addon) return resolve(addon);
  const release = nvccRelease();
  if (release === undefined) {
    console.log('bundle: nvcc was not found, so this bundle is for CPU ranks only');
    return join(root, 'build/Release/rankzero.node');
  }
  const list = architectures ?? architecturesFor(release);
  const folder = `build/cuda-${release}`;
  console.log(`bundle: compiling the addon with CUDA ${release} for ${list}`);
  const cli = join(root, 'node_modules/cmake-js/bin/cmake-js');
  execFileSync(process.execPath, [cli, 'compile', '--out', folder, '--log-level', 'warn', '--parallel', '2'], {
    cwd: root,
    stdio: 'inherit',
    env: { ...process.env, RANKZERO_CUDA: 'on', RANKZERO_CUDA_ARCHITECTURES: list },
  });
  return join(root, folder, 'Release/rankzero.node');
}

/** Libraries that `file` needs, directly or through others: name → path here. */
function libraries(file) {
  const text = execFileSync('ldd', [file], { encoding: 'utf8', env: { PATH: process.env.PATH } });
  const missing = /^\s*(\S+) => not found/m.exec(text)?.[1];
  if (missing) throw new Error(`${file} needs ${missing}, which is not on this machine`);
  return new Map([...text.matchAll(/^\s*(\S+) => (\/\S+)/gm)].map(([, name, path]) => [name, realpathSync(path)]));
}

// These come with every glibc system; another copy of them would not fit its loader.
const ofTheSystem = /^(ld-linux|libc|libm|libdl|librt|libpthread)[-.]/;
const ofTheCompiler = /^(libstdc\+\+|libgcc_s)\./;

/** Packages that run: those of package.json and theirs, without what only builds the addon. */
function runtimePackages() {
  const onlyToBuild = new Set(['cmake-js', 'node-addon-api']);
  const found = new Set();
  const add = (folder) => {
    const { dependencies = {} } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'));
    for (const name of Object.keys(dependencies)) {
      if (onlyToBuild.has(name) || found.has(name)) continue;
      found.add(name);
      add(join(root, 'node_modules', name));
    }
  };
  add(root);
  return [...found];
}

// zod holds everything twice, and is imported, never required.
const isSecondCopy = (path) => path.includes('/node_modules/zod/') && path.endsWith('.cjs');

const isForPeople = (name) => /\.([cm]?ts|map|md|markdown)$/.test(name);

function copy(from, to, keep = () => true) {
  cpSync(join(root, from), to, { recursive: true, filter: (path) => statSync(path).isDirectory() || keep(path) });
}

/** Compressed bytes of a file, kept in build/ by content: it takes half a minute. */
function packed(path, kind) {
  const bytes = readFileSync(path);
  const cache = join(root, 'build/packed', `${createHash('sha256').update(bytes).digest('hex')}.${kind}`);
  if (existsSync(cache)) return readFileSync(cache);
  const out = compressors[kind](path, bytes);
  mkdirSync(dirname(cache), { recursive: true });
  writeFileSync(`${cache}.${process.pid}`, out);
  renameSync(`${cache}.${process.pid}`, cache);
  return out;
}

const compressors = {
  gz: (_, bytes) => gzipSync(bytes, { level: 9 }),
  xz: (path) => execFileSync('xz', ['-9e', '-T1', '-c', path], { maxBuffer: 1 << 30 }),
  br: (_, bytes) => brotliCompressSync(bytes, { params: brotliParams(bytes) }),
};

function brotliParams(bytes) {
  return {
    [zlib.BROTLI_PARAM_QUALITY]: 5,
    [zlib.BROTLI_PARAM_LGWIN]: 24,
    [zlib.BROTLI_PARAM_SIZE_HINT]: bytes.length,
  };
}

/** A binary without what only debuggers read. */
function stripped(path, to) {
  mkdirSync(dirname(to), { recursive: true });
  cpSync(path, to);
  chmodSync(to, 0o755);
  execFileSync('strip', [to]);
}

function pack(file, kind) {
  writeFileSync(`${file}.${kind}`, packed(file, kind));
  rmSync(file);
}

const bytesBelow = (folder) =>
  readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .reduce((sum, entry) => sum + statSync(join(entry.parentPath, entry.name)).size, 0);

function makeBundle(options) {
  if (!existsSync(join(root, 'dist/cli/main.js'))) throw new Error('dist/ is missing; make it with: npm run setup');
  const addon = addonFor(options);
  const { out } = options;
  if (existsSync(out) && readdirSync(out).length > 0 && !existsSync(join(out, 'run.sh')))
    throw new Error(`${out} holds something else than a bundle; name another folder with --out`);
  rmSync(out, { recursive: true, force: true });
  const app = join(out, 'rankzero');

  for (const name of ['dist', 'bench', 'examples'])
    copy(name, join(app, name), (path) => !isForPeople(path) || path.endsWith('.md'));
  copy('test/multi/fixtures/make_model.mjs', join(app, 'test/multi/fixtures/make_model.mjs')); // makes the models of bench/
  for (const name of ['package.json', 'LICENSE']) copy(name, join(app, name));
  for (const name of runtimePackages())
    copy(`node_modules/${name}`, join(app, 'node_modules', name), (path) => !isForPeople(path) && !isSecondCopy(path));
  for (const name of ['run.sh', 'unpack.mjs']) copy(`scripts/bundle/${name}`, join(out, name));
  chmodSync(join(out, 'run.sh'), 0o755);

  const release = join(app, 'build/Release');
  stripped(addon, join(release, 'rankzero.node'));
  stripped(realpathSync(process.execPath), join(out, 'bin/node'));
  // Beside the addon, which looks there first; those of the compiler only for hosts that have none, since a newer one serves
  // older programs and not the other way round.
  const needed = new Map([...libraries(addon), ...libraries(process.execPath)]);
  for (const [name, path] of needed) {
    if (ofTheSystem.test(name)) continue;
    stripped(path, join(ofTheCompiler.test(name) ? join(out, 'lib') : join(release, 'lib'), name));
  }
  pack(join(out, 'bin/node'), options.nodeKind); // before there is a Node, the host's gzip unpacks
  for (const file of [
    join(release, 'rankzero.node'),
    ...readdirSync(join(release, 'lib')).map((name) => join(release, 'lib', name)),
  ])
    if (statSync(file).size > 1e6) pack(file, 'br');
  writeFileSync(join(out, 'machine'), `${execFileSync('uname', ['-m'], { encoding: 'utf8' })}`);

  let bytes = bytesBelow(out);
  if (bytes > limit && options.nodeKind === 'gz') {
    rmSync(join(out, 'bin/node.gz'));
    stripped(realpathSync(process.execPath), join(out, 'bin/node'));
    pack(join(out, 'bin/node'), 'xz');
    bytes = bytesBelow(out);
    console.log('bundle: with --xz, since it is too large without: the host needs xz or python3');
  }
  console.log(
    `bundle: ${relative(process.cwd(), out) || out}, ${(bytes / 1e6).toFixed(1)} MB; ${basename(out)}/run.sh doctor`,
  );
  if (bytes > limit)
    throw new Error(
      `the bundle has ${(bytes / 1e6).toFixed(1)} MB and must have less than ${limit / 1e6}: name fewer --architectures`,
    );
}

try {
  makeBundle(readOptions());
} catch (error) {
  console.error(`bundle: ${error.message}`);
  process.exitCode = 1;
}
