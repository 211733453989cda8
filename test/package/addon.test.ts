// The built addon as a file: what it exports, what it needs, and that it is the only one.
import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { installCommand, missingPrerequisites, nodeIsSupported } from '../../scripts/prerequisites.mjs';

const root = join(import.meta.dirname, '../..');
const folder = join(root, 'build/Release');

describe('build/Release', () => {
  it('holds exactly one .node: the loader takes the first it sees', () => {
    expect(readdirSync(folder).filter((name) => name.endsWith('.node'))).toEqual(['rankzero.node']);
  });

  it('exports what Node looks up and nothing else', () => {
    const text = execFileSync('nm', ['-D', '--defined-only', join(folder, 'rankzero.node')], { encoding: 'utf8' });
    const names = text
      .trim()
      .split('\n')
      .map((line) => line.split(' ').at(-1));
    expect(names.sort()).toEqual(['napi_register_module_v1', 'node_api_module_get_api_version_v1']);
  });

  it('needs no CUDA library, so that it loads without a GPU', () => {
    const text = execFileSync('readelf', ['-d', join(folder, 'rankzero.node')], { encoding: 'utf8' });
    const needed = [...text.matchAll(/NEEDED.*\[(.*)\]/g)].map((match) => match[1]);
    expect(needed.filter((name) => /cuda|cublas|nccl/.test(name!))).toEqual([]);
    expect(needed.some((name) => name!.startsWith('libdnnl'))).toBe(true);
  });
});

describe('scripts/install.mjs', () => {
  let copy: string;
  beforeAll(() => {
    copy = mkdtempSync(join(tmpdir(), 'rankzero-install-'));
    cpSync(join(root, 'scripts'), join(copy, 'scripts'), { recursive: true });
    cpSync(join(root, 'package.json'), join(copy, 'package.json'));
    symlinkSync(join(root, 'node_modules'), join(copy, 'node_modules'));
    mkdirSync(join(copy, 'bin'));
    symlinkSync(process.execPath, join(copy, 'bin/node'));
  });
  afterAll(() => rmSync(copy, { recursive: true }));

  it('names what is missing and the command that installs it', () => {
    const { CXX: _, ...env } = process.env;
    const result = spawnSync(process.execPath, ['scripts/install.mjs'], {
      cwd: copy,
      encoding: 'utf8',
      env: { ...env, PATH: join(copy, 'bin') },
    });
    expect(result.status).toBe(1);
    for (const text of ['C++20 compiler', 'CMake 3.20', 'make', 'oneDNN', 'Install with:', 'libdnnl-dev']) {
      expect(result.stderr).toContain(text);
    }
    expect(result.stderr).not.toContain('    at ');
  });

  it('finds this machine complete', () => {
    expect(missingPrerequisites()).toEqual([]);
  });

  it('names what only jobs of several hosts need, and does without it', () => {
    const script = `import { installCommand, missingOptional, missingPrerequisites } from './scripts/prerequisites.mjs';
      console.log(['apt', 'dnf'].map((manager) => installCommand(missingOptional(), manager)).join('; '));
      console.log(missingPrerequisites().some(({ apt }) => apt === 'libgloo-dev'));`;
    // A compiler that finds no headers.
    const env = { ...process.env, CXX: 'false' };
    const argv = ['--input-type=module', '-e', script];
    const { stdout } = spawnSync(process.execPath, argv, { cwd: copy, encoding: 'utf8', env });
    expect(stdout).toMatch(/^(sudo )?apt-get install -y libgloo-dev; (sudo )?dnf install -y gloo-devel\nfalse\n$/);
  });

  it('knows the package names of Debian and Fedora', () => {
    const missing = [
      { what: '', apt: 'g++', dnf: 'gcc-c++', present: () => false },
      { what: '', apt: 'libdnnl-dev', dnf: 'onednn-devel', present: () => false },
    ];
    expect(installCommand(missing, 'apt')).toMatch(/^(sudo )?apt-get install -y g\+\+ libdnnl-dev$/);
    expect(installCommand(missing, 'dnf')).toMatch(/^(sudo )?dnf install -y gcc-c\+\+ onednn-devel$/);
  });

  it('admits the Node versions of package.json', () => {
    const admitted = ['18.20.0', '20.18.9', '20.19.0', '21.7.0', '22.11.0', '22.12.0', '24.0.0'].filter(
      nodeIsSupported,
    );
    expect(admitted).toEqual(['20.19.0', '22.12.0', '24.0.0']);
  });
});
