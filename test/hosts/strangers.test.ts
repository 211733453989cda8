// Strangers on the network of a job: what talks to its ports without its secret does not disturb it where it can be told apart, and
// never changes a number. And ranks that look for the others at the wrong place.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { caught, expectNothingLeft, expectRight, said, startLaunchers, startRanks, verdictOf } from './jobs.ts';
import { type Host, Lab, whyNoHosts } from './lab.ts';
import { hostsFixture, runOnHosts, secret } from './ranks.ts';

const root = join(import.meta.dirname, '../..');
const storePort = 29_501;

describe.skipIf(whyNoHosts)(`strangers${whyNoHosts ? `: ${whyNoHosts}` : ''}`, () => {
  let dir: string;
  let lab: Lab;
  let h0: Host;
  let h2: Host;

  beforeAll(() => {
    dir = mkdtempSync(join(tmpdir(), 'strangers-'));
    execFileSync('cc', ['-shared', '-fPIC', '-O1', '-o', join(dir, 'slow_connect.so'), hostsFixture('slow_connect.c')]);
    const source = hostsFixture('gloo_stranger.cc');
    execFileSync('c++', ['-std=c++20', '-I', join(root, 'cpp'), '-o', join(dir, 'stranger'), source, '-ldl']);
  });
  afterAll(() => rmSync(dir, { recursive: true }));
  beforeEach(() => {
    lab = new Lab(3);
    h0 = lab.hosts[0]!;
    h2 = lab.hosts[2]!;
  });
  afterEach(() => lab[Symbol.dispose]());

  /** A process on h2 that is ended with the test; resolves when it has said all of `words`. */
  async function startStranger(argv: readonly string[], words: readonly string[]): Promise<void> {
    const waiting = new Set(words);
    await new Promise<void>((resolve) => {
      h2.start(argv, {
        onLine: (line) => {
          waiting.delete(line);
          if (waiting.size === 0) resolve();
        },
      });
    });
  }

  it('that send garbage to every open port, and that join with another secret, do not disturb', async () => {
    const ports = [storePort, 29_600, 29_601];
    const noise = startStranger(
      [process.execPath, hostsFixture('noise.mjs'), ...ports.map((port) => `${h0.address}:${port}`)],
      ports.map((port) => `noise ${port}`),
    );
    // They know everything but the secret, and come before those that they pretend to be.
    const rank = { RANK: '1', WORLD_SIZE: '3', LOCAL_RANK: '0', LOCAL_WORLD_SIZE: '1', MASTER_ADDR: h0.address };
    const pretenders = [
      h2.run([process.execPath, hostsFixture('steps.mjs'), '1', '10'], {
        env: { ...rank, MASTER_PORT: '29500', RANKZERO_SECRET: 'another' },
      }),
      h2.run(
        [process.execPath, join(root, 'dist/cli/main.js'), 'run', '--nnodes', '2', '--node-rank', '1'].concat([
          '--master-address',
          `${h0.address}:29600`,
          '--nproc',
          '2',
          hostsFixture('steps.mjs'),
          '1',
          '10',
        ]),
        { env: { RANKZERO_SECRET: 'another' } },
      ),
    ];
    let others!: () => void;
    const first = new Promise<void>((resolve) => {
      others = resolve;
    });
    const ranks = startRanks(lab, { seconds: 3 });
    const launched = startLaunchers(lab, { seconds: 1 }, first);
    const [falseRank, falseLauncher] = await Promise.all(pretenders);
    expect(falseRank!.stderr).toContain('the rendezvous store refused this rank: it holds another secret');
    expect(falseLauncher!.stderr).toContain('it does not hold the same secret');
    others();
    await Promise.all([noise, ranks.running, launched.running]);
    // Of a job that runs, the port of the store is open, and nothing else.
    expect(h0.openPorts).toContain(29_601);
    expect(h0.openPorts.filter((port) => ![storePort, 29_601].includes(port))).toEqual([]);
    expect(lab.hosts[1]!.openPorts).toEqual([]);
    const [rankResults, launcherResults] = await Promise.all([ranks.ended, launched.ended]);
    expectRight([...rankResults, ...launcherResults]);
    for (const result of [...rankResults, ...launcherResults, falseRank!, falseLauncher!])
      expect(said(result)).not.toContain(secret);
    h2.killAll();
    await expectNothingLeft(lab.hosts);
  });

  /** A job of two ranks whose rank 1 is late to connect to rank 0; resolves with the port at which that one waits. */
  async function startLateJob(): Promise<{ port: number; ended: ReturnType<typeof runOnHosts> }> {
    const ended = runOnHosts(lab, [[0], [1]], hostsFixture('steps.mjs'), {
      args: ['1', '1000'],
      env: { CATCH: '1', RANKZERO_HEARTBEAT_TIMEOUT: '5' },
      envOf: (rank): Record<string, string> =>
        rank === 1 ? { LD_PRELOAD: join(dir, 'slow_connect.so'), NOT_SLOW: String(storePort) } : {},
    });
    for (;;) {
      const port = h0.openPorts.find((open) => open !== storePort);
      if (port !== undefined) return { port, ended };
      await sleep(5);
    }
  }

  it('that are none, but late, are waited for', async () => {
    const { ended } = await startLateJob();
    expectRight(await ended);
  });

  it.each([
    ['dies', true, / died /],
    ['vanishes', false, / has been silent for 5 s /],
  ])('a rank that %s before it connects is named', async (_, isConnected, how) => {
    const { ended } = await startLateJob();
    const h1 = lab.hosts[1]!;
    h1.setLink(isConnected);
    h1.killAll();
    const [zero] = await ended;
    expect(caught(zero!)).toMatch(
      /^ERR_PEER: rank 1 \(pid \d+ on h1\) .*; this rank \(0\) was in newGroup of group world$/,
    );
    expect(caught(zero!)).toMatch(how);
    await expectNothingLeft(lab.hosts);
  });

  it.each(['random', 'reflect'])('that speak Gloo fail the challenge (%s)', async (manner) => {
    const { port, ended } = await startLateJob();
    const module = join(root, 'build/Release/rankzero_gloo.so');
    const stranger = await h2.run([join(dir, 'stranger'), module, h2.address, h0.address, String(port), manner]);
    expect(stranger.stdout).toBe('connected\nrefused\n');
    const [zero, one] = await ended;
    const text =
      /^ERR_PEER: rank 0 \(pid \d+ on h0\) lost its connection to rank 1 \(pid \d+ on h1\) in newGroup of group world: what answers there does not hold this job's secret/;
    for (const result of [zero!, one!]) expect(caught(result)).toMatch(text);
    await expectNothingLeft(lab.hosts);
  });

  it('that send garbage to a connection in the making end the job, with an error', async () => {
    const { port, ended } = await startLateJob();
    await startStranger([process.execPath, hostsFixture('noise.mjs'), `${h0.address}:${port}`], [`noise ${port}`]);
    const [zero, one] = await ended;
    h2.killAll();
    // Gloo may end the process.
    if (zero!.signal === null) expect(caught(zero!)).toMatch(/^ERR_PEER: rank [01] \(pid \d+ on h[01]\)/);
    expect(caught(one!)).toMatch(/^ERR_PEER: rank [01] \(pid \d+ on h[01]\)/);
    await expectNothingLeft(lab.hosts);
  });

  it('a wrong address is said by the rank that has it', async () => {
    const run = (port: number, address: string) =>
      runOnHosts(lab, [[0], [1]], hostsFixture('steps.mjs'), {
        args: ['1', '10'],
        port,
        env: { CATCH: '1', RANKZERO_TIMEOUT: '4' },
        envOf: (rank): Record<string, string> => (rank === 1 ? { MASTER_ADDR: address } : {}),
      });
    const waits =
      /^ERR_TIMEOUT: no rank made progress for 4 s .*: rank 0 waits in initProcessGroup for rank 1 \(not joined yet\)/;
    const wrong = [
      [
        'nowhere.invalid',
        /^ERR_STORE_ADDRESS: rank 1 on h1 cannot join the job: .*MASTER_ADDR=nowhere\.invalid, is unknown/,
      ],
      [
        '10.90.0.99',
        /^ERR_TIMEOUT: rank 1 on h1 cannot join the job: .* found no rendezvous store at 10\.90\.0\.99:\d+ within 4 s/,
      ],
      [
        '203.0.113.5',
        /^ERR_TIMEOUT: rank 1 on h1 cannot join the job: .* found no rendezvous store at 203\.0\.113\.5:\d+ within 4 s/,
      ],
    ] as const;
    const results = await Promise.all(wrong.map(([address], i) => run(29_510 + 10 * i, address)));
    for (const [i, [zero, one]] of results.entries()) {
      expect(caught(zero!)).toMatch(waits);
      expect(caught(one!)).toMatch(wrong[i]![1]);
    }
    await expectNothingLeft(lab.hosts);
  });

  it('a taken port is said on all hosts', async () => {
    const server = `for (const port of [29501, 29601]) require('net').createServer((s) => s.on('error', () => {}).end('SSH-2.0-x\\r\\n')).listen(port, () => console.log('up'))`;
    let count = 0;
    await new Promise<void>((resolve) => {
      h0.start([process.execPath, '-e', server], { onLine: () => ++count === 2 && resolve() });
    });
    const [ranks, launchers] = await Promise.all([startRanks(lab).ended, startLaunchers(lab).ended]);
    expect(caught(ranks[0]!)).toMatch(
      /^ERR_STORE_PORT: rank 0 on h0 cannot join the job: rank 0 cannot listen on port 29501 .* RANKZERO_PORT/,
    );
    for (const rank of [1, 2])
      expect(caught(ranks[rank]!)).toMatch(
        new RegExp(
          `^ERR_STORE_PROTOCOL: rank ${rank} on h1 cannot join the job: what listens at 10.90.0.10:29501 is not`,
        ),
      );
    for (const result of launchers) {
      expect(result.code, said(result)).toBe(1);
      expect(verdictOf(result)).toMatch(
        /^rank 0 on h0 failed: .*cannot listen on port 29601|^rank [12] on h1 failed: .*what listens at /,
      );
    }
    h0.killAll();
    await expectNothingLeft(lab.hosts);
  });
});
