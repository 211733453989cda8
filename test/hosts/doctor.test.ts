// `rankzero doctor --hosts`: what it says of hosts that are well, and what of those that are not.
import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { describeEngine } from '../../src/cli/doctor.ts';
import { rounds } from '../../src/tools/hosts/links.ts';
import type { HostsReport } from '../../src/tools/hosts/report.ts';
import { describeHosts, problemsOf } from '../../src/tools/hosts/report.ts';
import { cleanEnvironment, type HostProcess, Lab, type StartOptions, whyNoHosts } from './lab.ts';

const root = join(import.meta.dirname, '../..');
const cli = join(root, 'dist/cli/main.js');
const secret = 'a-secret-of-the-doctor';

describe('pairs of hosts', () => {
  it.each([2, 3, 4, 5, 8])('of %i meet once, nobody twice in a round', (count) => {
    const all = rounds(count);
    for (const pairs of all) expect(new Set(pairs.flat()).size).toBe(2 * pairs.length);
    const wanted = Array.from({ length: count }, (_, a) => Array.from({ length: count }, (_, b) => `${a},${b}`));
    expect(all.flat().map(String).sort()).toEqual(wanted.flatMap((row, a) => row.slice(a + 1)).sort());
    expect(all.length).toBe(count % 2 === 0 ? count - 1 : count);
  });
});

const well: HostsReport = {
  rankzero: '0.1.0',
  hosts: ['a', 'b'].map((host) => ({ host, node: '20.20.2', isa: 'avx2', engine: 'Gloo 0.5.0' })),
  hostOf: [0, 1],
  links: [{ from: 0, to: 1, roundTripSeconds: 150e-6, clockSeconds: -2.5, there: 1.2e9, back: 1.1e9 }],
};

describe('the table', () => {
  it('has hosts, clocks and links', () => {
    const lines = describeHosts(well).split('\n');
    expect(lines).toContain('  1     b     20.20.2  avx2     Gloo 0.5.0  −2.5 s');
    expect(lines).toContain('  a → b  150 µs      1.2 GB/s  1.1 GB/s');
    expect(lines.at(-1)).toBe('All is well.');
  });

  it('names hosts in what is wrong', () => {
    const folder = [
      { problem: '', unseen: [1] },
      { problem: 'EACCES: permission denied', unseen: [0] },
    ];
    expect(problemsOf({ ...well, hostOf: [0, 0], path: '/data', folder })).toEqual([
      'nodes 0 and 1 are both on host b',
      'a does not see what b wrote to /data',
      'b cannot write to /data: EACCES: permission denied',
      'b does not see what a wrote to /data',
    ]);
  });
});

describe('the module that connects hosts', () => {
  it('is shown by doctor: the file, or every place that was tried and the package', () => {
    const doctor = (env: Record<string, string>) =>
      spawnSync(process.execPath, [cli, 'doctor'], { encoding: 'utf8', env: cleanEnvironment(env), timeout: 60_000 });
    const { stdout, status } = doctor({ RANKZERO_GLOO_PATH: '/nowhere/rankzero_gloo.so' });
    expect(status).toBe(0); // one host does without
    for (const text of [
      'Several hosts',
      '/nowhere/rankzero_gloo.so',
      'libgloo-dev',
      'gloo-devel',
      'npm rebuild rankzero',
    ])
      expect(stdout).toContain(text);
    const found = {
      name: 'Gloo',
      path: '/x/rankzero_gloo.so',
      version: 'Gloo 0.5.0',
      problem: '',
      tried: [],
      remedy: '',
    };
    expect(describeEngine(found)).toBe('Gloo 0.5.0, /x/rankzero_gloo.so');
  });
});

describe('flags of doctor --hosts', () => {
  it.each([
    [['--path', '/tmp'], '--path needs --hosts', 2],
    [['--hosts', '--gpu'], '--hosts and --gpu are two checks', 2],
    [['--hosts'], 'started once on each of several hosts', 1],
    [['--hosts', '--nnodes', '2'], '--node-rank R is missing', 1],
  ])('%o: %s', (flags, text, code) => {
    const { stderr, status } = spawnSync(process.execPath, [cli, 'doctor', ...flags], {
      encoding: 'utf8',
      env: cleanEnvironment(),
    });
    expect(stderr).toContain(text);
    expect(status).toBe(code);
  });
});

describe.skipIf(whyNoHosts)(`doctor on several hosts${whyNoHosts ? ` (${whyNoHosts})` : ''}`, () => {
  let folder: string;
  let lab: Lab;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'rankzero-doctor-'));
    lab = new Lab(3);
  });
  afterAll(() => {
    lab?.[Symbol.dispose]();
    rmSync(folder, { recursive: true });
  });

  /** On the first `count` hosts, with flags for each. */
  const doctor = (
    count: number,
    flags: (node: number) => readonly string[],
    options: (node: number) => StartOptions = () => ({}),
  ): Promise<HostProcess[]> =>
    Promise.all(
      lab.hosts.slice(0, count).map((host, node) => {
        const place = [
          '--nnodes',
          String(count),
          '--node-rank',
          String(node),
          '--master-address',
          lab.hosts[0]!.address,
        ];
        const given = options(node);
        const env = { RANKZERO_SECRET: secret, RANKZERO_TIMEOUT: '20', ...given.env };
        return host.run([process.execPath, cli, 'doctor', '--hosts', ...place, ...flags(node)], { ...given, env });
      }),
    );

  it('measures every pair, and prints one table on node 0', async () => {
    const results = await doctor(3, () => ['--json', '--path', folder]);
    expect(results.map(({ code, stderr }) => [code, stderr.includes('failed')])).toEqual(Array(3).fill([0, false]));
    const report = JSON.parse(results[0]!.stdout) as HostsReport & { problems: string[] };
    expect(results.slice(1).map(({ stdout }) => stdout)).toEqual(['', '']);
    expect(report.hosts.map(({ host }) => host)).toEqual(['h0', 'h1', 'h2']);
    for (const { engine } of report.hosts) expect(engine).toMatch(/^Gloo \d/);
    expect(report.links.map(({ from, to }) => `${from} ${to}`).sort()).toEqual(['0 1', '0 2', '1 2']);
    for (const { there, back, roundTripSeconds, clockSeconds } of report.links) {
      expect(Math.min(there, back)).toBeGreaterThan(1e6);
      expect(roundTripSeconds).toBeGreaterThan(0);
      // One clock: it can be no further away than a message takes.
      expect(Math.abs(clockSeconds)).toBeLessThan(roundTripSeconds + 0.01);
    }
    expect(report.folder).toEqual(Array(3).fill({ problem: '', unseen: [] }));
    expect(report.problems).toEqual([]);
  });

  it('names the hosts that do not have the same folder', async () => {
    const [data, own] = ['data', 'own'].map((name) => join(folder, name)) as [string, string];
    for (const path of [data, own]) mkdirSync(path);
    const results = await doctor(
      2,
      () => ['--path', data],
      (node) => (node === 1 ? { mounts: { [data]: own } } : {}),
    );
    expect(results.map(({ code }) => code)).toEqual([1, 1]);
    expect(results[0]!.stdout).toContain(`h0 does not see what h1 wrote to ${data}`);
    expect(results[0]!.stdout).toContain(`h1 does not see what h0 wrote to ${data}`);
    expect([...readdirSync(data), ...readdirSync(own)]).toEqual([]);
    expect(results[0]!.stderr).toContain('rank 0 on h0 failed: h0 does not see');
  });

  it('names the host without the module, and the package', async () => {
    const broken = join(folder, 'broken.so');
    copyFileSync(cli, broken);
    const results = await doctor(
      2,
      () => [],
      (node) => (node === 1 ? { env: { RANKZERO_GLOO_PATH: broken } } : {}),
    );
    expect(results.map(({ code }) => code)).toEqual([1, 1]);
    expect(results[0]!.stderr).toMatch(/rank 1 on h1 cannot be connected to the others: .*broken\.so/s);
    expect(results[0]!.stderr).toContain('libgloo-dev');
  });

  it('says who does not come', async () => {
    const [alone] = await Promise.all([
      lab.hosts[1]!.run(
        [
          process.execPath,
          cli,
          'doctor',
          '--hosts',
          '--nnodes',
          '2',
          '--node-rank',
          '1',
          '--master-address',
          lab.hosts[0]!.address,
        ],
        { env: { RANKZERO_SECRET: secret, RANKZERO_TIMEOUT: '3' } },
      ),
    ]);
    expect(alone.code).toBe(1);
    expect(alone.stderr).toContain(lab.hosts[0]!.address);
  });
});
