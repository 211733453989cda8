// Every kernel, forward and backward, against double-precision references: under each instruction set that this processor
// has, and without a bfloat16 product. The program is built in the addon's build folder, from the same objects.
import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';

const root = join(import.meta.dirname, '../..');
const build = join(root, 'build');
const program = join(build, 'test/native/kernels/kernels_test');

function command(name: string, ...args: string[]): string {
  return execFileSync(name, args, {
    cwd: root,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
    maxBuffer: 64 << 20,
  });
}

describe('kernels', () => {
  beforeAll(() => {
    expect(existsSync(join(build, 'CMakeCache.txt')), 'the addon is built: npm run build:native').toBe(true);
    command('cmake', '--build', build, '--target', 'kernels_test', '--parallel', '2');
  }, 600_000);

  it('equal their references under every instruction set', () => {
    const text = command(program);
    const runs = [...text.matchAll(/^(\w+=\w*)\nok (\d+) checks, isa \w+/gm)];
    expect(
      runs.map(([, setting]) => setting),
      text,
    ).toEqual([
      'RANKZERO_ISA=',
      'RANKZERO_ISA=avx512',
      'RANKZERO_ISA=avx2',
      'RANKZERO_ISA=baseline',
      'DNNL_MAX_CPU_ISA=AVX2',
    ]);
    for (const [, setting, checks] of runs) expect(Number(checks), setting).toBeGreaterThan(900);
  }, 600_000);

  it('are given the same inputs whatever ran before', () => {
    const lines = command(program, '--here', '', 'v').split('\n');
    for (const file of ['norm_rope', 'moe']) {
      const own = command(program, '--here', file, 'v').trim().split('\n').slice(0, -1);
      expect(own.length).toBeGreaterThan(200);
      const at = lines.indexOf(own[0]!);
      expect(lines.slice(at, at + own.length)).toEqual(own);
    }
  }, 600_000);

  it('leave exactly one addon to load', () => {
    expect(readdirSync(join(build, 'Release')).filter((name) => name.endsWith('.node'))).toEqual(['rankzero.node']);
  });
});
