// `rankzero doctor --gpu` with small shapes on the emulated device: every op passes, every measurement gives numbers, and a
// device that computes wrongly is found out.
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { PartRun } from '../../src/tools/gpu/run_part.ts';
import { available, buildEmulated, runNode } from './emulated.ts';

const cli = join(import.meta.dirname, '../../dist/cli/main.js');

describe.skipIf(!available)('doctor --gpu, emulated', () => {
  let folder: string;
  beforeAll(buildEmulated, 600_000);
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'rankzero-doctor-'));
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  const doctor = (...args: string[]) => runNode([cli, 'doctor', '--gpu', '--size', 'small', '--seed', '7', ...args], 1);

  it('proves every op of the table, the memory and the collectives', async () => {
    const out = join(folder, 'checks');
    const { code, stdout } = await doctor('--only', 'ops,allocator,collectives,hopper', '--out', out);
    expect(stdout).toMatch(/\d+ passed, 0 failed\. All is well\.\n$/);
    expect(code).toBe(0);
    const found = JSON.parse(readFileSync(join(out, 'doctor-gpu.json'), 'utf8')) as Findings;
    const ops = found.parts.ops!.results;
    expect(ops.length).toBeGreaterThan(37);
    expect(ops.filter(({ unit }) => unit !== 'table of ops').every(({ cases }) => cases! >= 2)).toBe(true);
    expect(found.parts.hopper!.results.map(({ unit }) => unit)).toEqual([
      'attention_forward hopper',
      'attention_backward hopper',
    ]);
    expect(found.parts.hopper!.results.every(({ cases }) => cases! >= 2)).toBe(true);
    expect(found.parts.allocator!.results[0]!.cases).toBeGreaterThan(50);
    expect(found.parts.collectives!.results[0]!.cases).toBeGreaterThan(6);
    expect(readFileSync(join(out, 'doctor-gpu.txt'), 'utf8')).toBe(stdout);
  });

  it('finds an op that leaves elements unwritten, is wrong, or takes the device down, and one without cases', async () => {
    const { stdout, stderr } = await runNode([join(import.meta.dirname, 'fixtures/doctor_faults.mjs')], 1);
    expect(stdout, stderr).toMatch(/^\{/);
    const found = JSON.parse(stdout);
    expect(found.none).toEqual([]);
    expect(found.unwritten[0]).toMatch(/error NaN.*NaN should be/);
    expect(found.wrong[0]).toMatch(/float32, y: error 2\.00e-2, at most 0\.00001/);
    expect(found.lost).toMatch(/^ERR_DEVICE: .*illegal memory access/);
    expect(found.table).toEqual(['rope exists on the CPU only', 'dance has no cases in src/tools/gpu/cases']);
  });

  it('measures everything that it measures', async () => {
    const { code, stdout } = await doctor('--only', 'measurements', '--json', '--peak', '100');
    expect(code).toBe(0);
    const { parts } = JSON.parse(stdout) as Findings;
    const names = ['bandwidth', 'gemm', 'kernels', 'attention', 'step', 'load', 'hopper_attention', 'hopper_step'];
    expect(Object.keys(parts)).toEqual(names);
    const measures = Object.values(parts).flatMap((run) => run.results.flatMap((result) => result.measures ?? []));
    expect(measures.length).toBeGreaterThan(40);
    expect(measures.filter(({ value }) => !(value > 0 && Number.isFinite(value)))).toEqual([]);
    expect(measures.some(({ of }) => of === 'peak (MFU)')).toBe(true);
  });

  it('measures a step with another setting for who asks, each in a process of its own', async () => {
    const asked = ['nothing fused', 'without sums', 'four GEMM proposals timed', 'layers run again, selectively'];
    const units = asked.map((name) => name.split(', ').at(-1)).join(',');
    const { code, stdout, stderr } = await doctor('--only', 'step', '--json', '--units', units);
    expect(code, stderr).toBe(0);
    const { parts } = JSON.parse(stdout) as Findings;
    expect(parts.step!.results.map(({ unit }) => unit)).toEqual(asked.map((name) => `2×8 tokens, mma, ${name}`));
    expect(parts.step!.results.flatMap(({ failures }) => failures)).toEqual([]);
  });

  it('is part of the one command for a GPU host, with the benches on the device', async () => {
    const out = join(folder, 'visit');
    const visit = join(import.meta.dirname, '../../bench/gpu/visit.mjs');
    const { code, stdout } = await runNode(
      [visit, out, '--size', 'small', '--python', '', '--only', 'benches,doctor,allocator'],
      1,
    );
    expect(stdout).toMatch(/doctor +ok\nallocator +ok\nbench-load +ok\nbench-training +ok\n/);
    expect(code).toBe(0);
    const { steps } = JSON.parse(readFileSync(join(out, 'visit.json'), 'utf8'));
    for (const name of ['bench-load', 'bench-training'])
      expect(steps[name].found.results[0].sides.rankzero).toBeDefined();
    expect(steps.doctor.found.accelerator.devices).toHaveLength(1);
    expect(steps.allocator.found.parts.allocator.results[0].cases).toBeGreaterThan(50);
    expect(readdirSync(out).sort()).toEqual(['visit.json', 'visit.txt']);
    expect(readFileSync(join(out, 'visit.txt'), 'utf8')).toBe(stdout);
  });

  it('runs its ops under compute-sanitizer where that is, and says what it found', async () => {
    const tools = join(folder, 'tools');
    mkdirSync(tools);
    const tool = `#!/bin/sh
[ "$1" = --version ] && exit
echo "$RANKZERO_BARRIER_SECONDS $1 $2 $3 $4" >> ${join(folder, 'asked')}
tool=$2
shift 8
"$@" || exit
echo "========= ERROR SUMMARY: 0 errors"
[ $tool = memcheck ] || { echo "========= Error: Race reported between Write access at"; exit 77; }\n`;
    writeFileSync(join(tools, 'compute-sanitizer'), tool, { mode: 0o755 });
    const args = [cli, 'doctor', '--gpu', '--size', 'small', '--only', 'sanitizers'];
    const { code, stdout } = await runNode([...args, '--units', 'memcheck,racecheck,rms_norm'], 1, {
      PATH: `${tools}:${process.env.PATH}`,
    });
    expect(stdout).toMatch(/ok +memcheck +[1-9]\d* cases/);
    expect(stdout).toMatch(
      /FAILED racecheck.*\n.*errors:\n.*ERROR SUMMARY: 0 errors\n.*Error: Race reported between Write/,
    );
    expect(stdout).toContain('1 passed, 1 failed');
    expect(code).toBe(1);
    const asked = readFileSync(join(folder, 'asked'), 'utf8').trim().split('\n');
    expect(asked).toContain('600 --tool memcheck --error-exitcode 77');
    const without = await runNode(args, 1, { PATH: '/usr/bin:/bin' });
    if (!existsSync('/usr/local/cuda/bin/compute-sanitizer'))
      expect(without.stdout).toContain('left out: compute-sanitizer is not on this machine');
  });

  it.each([
    ['12020', 'pip install nvidia-cublas-cu12,'],
    ['13000', 'pip install nvidia-cublas,'],
  ])('says what brings cuBLASLt to a host with a driver of CUDA %s', async (driver, remedy) => {
    const nowhere = join(folder, 'libcublasLt.so');
    const extra = { RANKZERO_CUBLASLT_PATH: nowhere, RANKZERO_EMULATED_DRIVER: driver };
    const { stdout } = await runNode([cli, 'doctor'], 1, extra);
    expect(stdout).toMatch(/cuBLASLt +not found; tried:\n/);
    expect(stdout).toContain(nowhere);
    expect(stdout).toContain(remedy);
  });

  it('leaves out what the time does not suffice for, and says so', async () => {
    const { code, stdout } = await doctor('--only', 'ops', '--time-limit', '0.01');
    expect(code).toBe(1);
    expect(stdout).toMatch(/Something is wrong/);
  });
});

interface Findings {
  parts: Record<string, PartRun>;
}
