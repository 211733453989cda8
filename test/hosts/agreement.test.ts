// What hosts must have in common: a version, instruction sets, an engine between them.
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { expectReference, resultsOf, type Settings } from '../multi/reference_run.ts';
import { Lab, whyNoHosts } from './lab.ts';
import { hostsFixture, multiFixture, runOnHosts } from './ranks.ts';

const root = join(import.meta.dirname, '../..');
const folder = mkdtempSync(join(tmpdir(), 'rankzero-agreement-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe.skipIf(whyNoHosts)(`hosts that differ${whyNoHosts ? ` (${whyNoHosts})` : ''}`, () => {
  it('in processors compute with what all have, so that replicas keep equal bits', async () => {
    using lab = new Lab(2);
    const settings: Settings[] = [
      { name: 'llama', world: 2, tp: 1, flow: 'A', shardingStrategy: 'NO_SHARD' },
      { name: 'qwen3', world: 2, tp: 1, flow: 'A', shardingStrategy: 'HYBRID_SHARD' },
    ];
    const older = { RANKZERO_ISA: 'avx2', ONEDNN_MAX_CPU_ISA: 'AVX2' };
    const ended = await runOnHosts(lab, [[0], [1]], multiFixture('fsdp_reference.mjs'), {
      args: [JSON.stringify(settings)],
      envOf: (rank) => (rank === 1 ? older : {}) as Record<string, string>,
    });
    expect(ended.map(({ code, stderr }) => [code, stderr])).toEqual([
      [
        0,
        'rankzero: the processors differ: all ranks compute with avx2, as rank 1 on h1 does, so that their bits are the same\n',
      ],
      [0, ''],
    ]);
    const runs = resultsOf(
      ended.map(({ stdout }) => stdout),
      settings.length,
    );
    for (const [i, results] of runs.entries()) expectReference(results, settings[i]!);
  });

  it('in versions of the package are refused, on every rank', async () => {
    // The same package, as another version calls itself.
    const other = join(folder, 'other');
    cpSync(join(root, 'dist'), join(other, 'dist'), { recursive: true });
    for (const name of ['build', 'node_modules']) symlinkSync(join(root, name), join(other, name));
    const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as Record<string, unknown>;
    writeFileSync(join(other, 'package.json'), JSON.stringify({ ...manifest, version: '9.9.9' }));
    using lab = new Lab(2);
    const ended = await runOnHosts(lab, [[0], [1]], hostsFixture('join.mjs'), {
      envOf: (rank) => ({ RANKZERO_DIST: rank === 1 ? join(other, 'dist') : join(root, 'dist') }),
    });
    for (const { code, stderr } of ended) {
      expect(code).toBe(1);
      expect(stderr).toMatch(
        new RegExp(
          `rank 1 on h1 runs rankzero 9\\.9\\.9 but rank 0 runs ${manifest.version}: install one version on all hosts`,
        ),
      );
      expect(stderr).toContain('ERR_STORE_VERSION');
    }
  });

  it('in that one lacks the engine are told which, and what to install', async () => {
    using lab = new Lab(2);
    const ended = await runOnHosts(lab, [[0], [1]], hostsFixture('join.mjs'), {
      envOf: (rank) => (rank === 1 ? { RANKZERO_GLOO_PATH: join(folder, 'nothing.so') } : {}) as Record<string, string>,
    });
    for (const { code, stderr } of ended) {
      expect(code).toBe(1);
      expect(stderr).toContain(
        'the ranks of this job are on 2 hosts, but rank 1 on h1 cannot be connected to the others',
      );
      expect(stderr).toMatch(/nothing\.so.*\(from RANKZERO_GLOO_PATH\)/);
      expect(stderr).toContain('apt-get install -y libgloo-dev');
      expect(stderr).toContain('ERR_BACKEND');
    }
  });
});
