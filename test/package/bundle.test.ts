// scripts/bundle.mjs: the folder for hosts without Node, moved elsewhere and run with nothing of this machine but its system.
// The addon is one that is there, with the CUDA backend if possible (.ci/run compiles it into the checkout's): a bundle's own
// takes minutes to compile.
import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { newest } from '../../scripts/addon.mjs';
import { architecturesFor } from '../../scripts/architectures.mjs';

const root = join(import.meta.dirname, '../..');
const missing = ['gzip', 'strip', 'ldd'].filter((tool) => spawnSync(tool, ['--version']).error);
if (missing.length > 0) console.log(`bundle.test.ts is skipped: this machine lacks ${missing.join(', ')}`);

/** Whether an addon is newer than its sources and has the CUDA backend, for one architecture: several need --xz. */
function hasCuda(addon: string): boolean {
  const sources = ['binding', 'cpp', 'cmake', 'CMakeLists.txt'].map((name) => newest(join(root, name)));
  if (newest(addon) < Math.max(...sources)) return false;
  const script = 'process.stdout.write(JSON.stringify(require(process.argv[1]).acceleratorInfo()))';
  const { stdout, status } = spawnSync(process.execPath, ['-e', script, addon], { encoding: 'utf8' });
  if (status !== 0) return false;
  const { built, architectures } = JSON.parse(stdout);
  return built && !architectures.includes(' ');
}

const ownAddon = join(root, 'build/Release/rankzero.node');
const withCuda = [ownAddon].find(hasCuda);
if (!withCuda) console.log('bundle.test.ts: no addon with CUDA is at hand, so the bundle has none');

let folder: string;
let bundle: string;

function run(...args: string[]): { status: number | null; stdout: string; stderr: string } {
  const env = { PATH: '/usr/bin:/bin' };
  return spawnSync(join(bundle, 'run.sh'), args, { cwd: folder, env, encoding: 'utf8', timeout: 100_000 });
}

it.each([
  ['12.4', '80;90a-real'],
  ['12.8', '80-real;90a-real;100-real;120'],
  ['13.0', '80-real;90a-real;100-real;120'],
])('a bundle of nvcc %s has machine code for every GPU that it knows', (release, list) => {
  expect(architecturesFor(release)).toBe(list);
});

describe.skipIf(missing.length > 0)('the bundle', () => {
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'rankzero-bundle-'));
    const made = join(folder, 'made');
    const args = [join(root, 'scripts/bundle.mjs'), '--addon', withCuda ?? ownAddon, '--out', made];
    execFileSync(process.execPath, args, { encoding: 'utf8' });
    bundle = join(folder, 'moved here');
    renameSync(made, bundle);
  }, 120_000);
  afterAll(() => rmSync(folder, { recursive: true }));

  it('has less than 60 MB, and names no place of this machine', () => {
    const files = readdirSync(bundle, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
    const paths = files.map((entry) => join(entry.parentPath, entry.name));
    const bytes = paths.reduce((sum, path) => sum + readFileSync(path).length, 0);
    expect(bytes).toBeLessThan(60e6);
    expect(bytes).toBeGreaterThan(20e6);
    const texts = paths.filter((path) => /\.(js|mjs|json|sh|py)$/.test(path));
    expect(texts.filter((path) => readFileSync(path, 'utf8').includes(root))).toEqual([]);
  });

  it('unpacks itself and finds this machine well, with its own Node, addon and libraries', () => {
    const { status, stdout, stderr } = run('doctor', '--json');
    expect(stderr).toBe('');
    expect(status).toBe(0);
    const { ok, node, addon, accelerator } = JSON.parse(stdout);
    expect({ ok, node }).toEqual({ ok: true, node: process.versions.node });
    expect(accelerator.built).toBe(withCuda !== undefined);
    if (withCuda) expect(accelerator.architectures).toMatch(/^(native|\d\d.*)$/);
    for (const path of [addon.path, ...addon.libraries]) expect(path).toContain('/moved here/');
    expect(addon.libraries.length).toBeGreaterThanOrEqual(2);
  });

  it('needs only the C library and the compiler’s of the system', () => {
    const text = execFileSync('ldd', [join(bundle, 'rankzero/build/Release/rankzero.node')], { encoding: 'utf8' });
    expect(text).not.toContain('not found');
    const outside = [...text.matchAll(/^\s*(\S+) => (\/.*) \(/gm)].filter(
      ([, , path]) => !path!.includes('/moved here/'),
    );
    const ofTheSystem = /^(libc|libm|libdl|librt|libpthread|libstdc\+\+|libgcc_s)\.so/;
    expect(outside.map(([, name]) => name).filter((name) => !ofTheSystem.test(name!))).toEqual([]);
    expect(text).toMatch(/libOpenCL\S* => \/.*moved here/);
  });

  it('fine-tunes the quickstart on two ranks', () => {
    const app = join(bundle, 'rankzero/examples');
    const { status, stdout, stderr } = run(
      'finetune',
      '--model',
      join(app, 'moby-llama'),
      '--data',
      join(app, 'data/devils-dictionary.train.jsonl'),
      '--out',
      'tuned',
      '--nproc',
      '2',
      '--max-steps',
      '2',
    );
    expect(status, stdout + stderr).toBe(0);
    expect(readdirSync(join(folder, 'tuned'))).toContain('config.json');
  });

  it('names its benches, and what it does not know', () => {
    expect(run('bench', 'nothing').stderr).toMatch(/one of .*\btraining\b/);
    expect(run('bench', 'calls', '--help').stdout).toContain('--repetitions');
    expect(run('dance').stderr).toContain('no such command: dance');
    expect(run('dance').status).not.toBe(0);
  });

  it('is not made over a folder of something else', () => {
    const other = join(folder, 'other');
    mkdirSync(other);
    writeFileSync(join(other, 'thesis.txt'), 'mine');
    const result = spawnSync(process.execPath, [join(root, 'scripts/bundle.mjs'), '--addon', 'x', '--out', other], {
      encoding: 'utf8',
    });
    expect(result.stderr).toContain('holds something else than a bundle');
    expect(result.status).toBe(1);
    expect(readdirSync(other)).toEqual(['thesis.txt']);
  });

  it('says so where it cannot unpack', () => {
    const copy = join(folder, 'broken');
    mkdirSync(join(copy, 'bin'), { recursive: true });
    for (const name of ['run.sh', 'machine', 'unpack.mjs']) cpSync(join(bundle, name), join(copy, name));
    writeFileSync(join(copy, 'bin/node.gz'), 'this is no archive');
    const { status, stderr } = spawnSync(join(copy, 'run.sh'), ['doctor'], { encoding: 'utf8' });
    expect(stderr).toContain('cannot unpack into');
    expect(status).toBe(1);
    expect(readdirSync(join(copy, 'bin'))).toEqual(['node.gz']);
  });
});
