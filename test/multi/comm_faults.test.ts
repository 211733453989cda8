// What happens when a rank dies, leaves, disagrees or stalls: an error that says who and what on every other rank, soon.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { fixture, isAlive, type ProcessResult, runProcess, runRanks, sharedMemoryHolders } from './helpers.ts';

let nextPort = 33_000 + (process.pid % 500) * 4;

/** Ranks without our launcher, so that each one's own end is seen. */
function ranks(world: number, scenario: string, env: Record<string, string> = {}): Promise<ProcessResult[]> {
  nextPort += 2;
  const common = {
    WORLD_SIZE: String(world),
    MASTER_ADDR: '127.0.0.1',
    MASTER_PORT: String(nextPort),
    CATCH: '1',
    ...env,
  };
  return Promise.all(
    Array.from({ length: world }, (_, rank) =>
      runProcess([fixture('faults.mjs'), scenario], { ...common, RANK: String(rank) }),
    ),
  );
}

const caught = ({ stdout }: ProcessResult): string =>
  /^caught (.*)$/m.exec(stdout)?.[1] ?? `nothing was caught: ${stdout}`;

describe('a rank that goes', () => {
  it.each([
    ['killedBusy', /^ERR_PEER: rank 1 \(pid \d+\) died .*; this rank \([02]\) was in all_reduce #\d+ of group world$/],
    [
      'killedIdle',
      /^ERR_PEER: rank 1 \(pid \d+\) died between collectives \(the last was #1\), phase load, 3\.1 MB moved; this rank/,
    ],
    [
      'exitsEarly',
      /^ERR_PEER: rank 1 \(pid \d+\) left the job while rank [02] waits for it in all_reduce #2 of group world/,
    ],
    ['endsEarly', /^ERR_PEER: rank 1 \(pid \d+\) left the job while rank [02] waits for it/],
    ['throws', /^ERR_PEER: rank 1 \(pid \d+\) failed: it exited with code 1; this rank/],
    [
      'killedInSplit',
      /^ERR_PEER: rank 1 \(pid \d+\) died between collectives .*; this rank \([02]\) was in newGroup of group \[0,1,2\]$/,
    ],
    ['skipped', /^ERR_PEER: rank 1 failed: all_reduce #2 was skipped, since an earlier operation on its stream failed/],
  ])('%s: the others throw and say so', async (scenario, text) => {
    const start = Date.now();
    const [zero, , two] = await ranks(3, scenario);
    expect(caught(zero!)).toMatch(text);
    expect(caught(two!)).toMatch(text);
    expect(Date.now() - start).toBeLessThan(10_000);
  });

  it('killedRank0: the store goes with it', async () => {
    const [, one, two] = await ranks(3, 'killedRank0');
    const text = /^ERR_PEER: rank 0 \(pid \d+\), which holds the store, died .*; this rank \([12]\) was in/;
    expect(caught(one!)).toMatch(text);
    expect(caught(two!)).toMatch(text);
  });

  it('may leave while the others still read what it shared', async () => {
    const results = await ranks(3, 'lastCollectiveUnawaited');
    expect(results.map(({ code }) => code)).toEqual([0, 0, 0]);
    expect(results[0]!.stdout).toContain('finished');
    expect(results[2]!.stdout).toContain('finished');
  });
});

describe('ranks that disagree', () => {
  it.each([
    [
      'differentOperation',
      /collective #2 is all_reduce\(3 × float32, sum\) on rank [02] but broadcast\(3 × float32, root 0\) on rank 1|collective #2 is broadcast\(3 × float32, root 0\) on rank 1 but all_reduce\(3 × float32, sum\) on rank 2/,
    ],
    ['differentSize', /all_gather\((4|5)0000 × float32\) on rank \d but all_gather\((4|5)0000 × float32\) on rank \d/],
    [
      'differentDtype',
      /all_reduce\(2 × (float32|bfloat16), sum\) on rank \d but all_reduce\(2 × (float32|bfloat16), sum\) on rank \d/,
    ],
    ['differentCounts', /collective #2 is all_to_all that sends 1 elements from rank 0 to rank 1, which expects 2/],
  ])('%s: the same error on every rank', async (scenario, text) => {
    const errors = (await ranks(3, scenario)).map(caught);
    expect(errors[0]).toMatch(/^ERR_COLLECTIVE_MISMATCH: the ranks of group world made different calls: /);
    expect(errors[0]).toMatch(text);
    expect(new Set(errors).size).toBe(1);
  });

  it('learn it before a late rank arrives', async () => {
    const start = Date.now();
    const results = await ranks(3, 'differentWhileOneIsLate', { RANKZERO_TIMEOUT: '15' });
    expect(caught(results[0]!)).toMatch(/^ERR_COLLECTIVE_MISMATCH/);
    expect(caught(results[1]!)).toBe(caught(results[0]!));
    expect(caught(results[2]!)).toBe(caught(results[0]!)); // when it comes, 20 s later
    expect(Date.now() - start).toBeLessThan(28_000);
  });

  it('on a message', async () => {
    const results = await ranks(2, 'differentMessage');
    expect(caught(results[1]!)).toBe(
      'ERR_COLLECTIVE_MISMATCH: message #1 of group world is send(20 × float32) on rank 0 but recv(10 × float32) on rank 1',
    );
    expect(caught(results[0]!)).toBe(caught(results[1]!));
  });
});

describe('a rank that stalls', () => {
  it('is an error after the timeout, with what it was doing', async () => {
    const [zero] = (
      await runRanks(3, fixture('faults.mjs'), { args: ['timeout'], env: { RANKZERO_TIMEOUT: '2', CATCH: '1' } })
    ).stdout;
    expect(zero).toMatch(
      /ERR_TIMEOUT: no rank made progress for 2 s \(RANKZERO_TIMEOUT\): rank \d waits in all_reduce #2 of group world for rank \d \(pid \d+\), which is /,
    );
  });

  it('but moves bytes is waited for', async () => {
    const results = await ranks(2, 'slow', { RANKZERO_TIMEOUT: '3' });
    expect(results.map(({ code }) => code)).toEqual([0, 0]);
  });
});

describe('a disk on which everything takes longer than the timeout', () => {
  let dir: string;
  beforeAll(() => {
    dir = mkdtempSync(join(tmpdir(), 'slow-disk-'));
    execFileSync('cc', ['-shared', '-fPIC', '-O1', '-o', join(dir, 'slow_disk.so'), fixture('slow_disk.c')]);
  });
  afterAll(() => rmSync(dir, { recursive: true }));

  it('is waited for while it reads, writes and flushes', async () => {
    const env = { RANKZERO_TIMEOUT: '3', LD_PRELOAD: join(dir, 'slow_disk.so') };
    const [zero, one] = await ranks(2, 'slowDisk', env);
    expect(caught(zero!)).toMatch(/^nothing was caught/);
    expect(zero!.stdout).toContain('finished');
    for (const what of ['write', 'flush', 'read'])
      expect(Number(new RegExp(`^${what} (\\d+) ms$`, 'm').exec(one!.stdout)![1]), what).toBeGreaterThan(4000);
  });
});

describe('the store', () => {
  const environment = (rank: number, extra: Record<string, string>) => ({
    RANK: String(rank),
    WORLD_SIZE: '2',
    MASTER_ADDR: '127.0.0.1',
    MASTER_PORT: String(nextPort),
    RANKZERO_TIMEOUT: '5',
    CATCH: '1',
    ...extra,
  });
  const run = (rank: number, extra: Record<string, string>) =>
    runProcess([fixture('faults.mjs'), 'exitsEarly'], environment(rank, extra));

  it('refuses another secret', async () => {
    nextPort += 2;
    const [zero, one] = await Promise.all([run(0, { RANKZERO_SECRET: 'right' }), run(1, { RANKZERO_SECRET: 'wrong' })]);
    expect(one.stderr).toMatch(
      /refused this rank: it holds another secret\. All ranks of a job need the same RANKZERO_SECRET/,
    );
    expect(one.code).toBe(1);
    expect(zero.stderr).toContain('the rendezvous store refused a process that holds another secret');
    expect(zero.stderr).toMatch(
      /no rank made progress for 5 s \(RANKZERO_TIMEOUT\): rank 0 waits in initProcessGroup for rank 1 \(not joined yet\)/,
    );
  });

  it('refuses another world size, and a rank that is there already', async () => {
    nextPort += 2;
    // Refused at once; the time limit is for a machine that takes long to start the second process.
    const patient = { RANKZERO_TIMEOUT: '25' };
    const both = await Promise.all([run(0, patient), run(1, { ...patient, WORLD_SIZE: '3' })]);
    for (const { stderr } of both)
      expect(stderr).toContain('a process joined as rank 1 of 3 but rank 0 has a world of 2');
    nextPort += 2;
    const [zero, twin] = await Promise.all([
      run(0, { RANK: '0' }),
      new Promise<ProcessResult>((resolve) => setTimeout(() => resolve(run(0, {})), 300)),
    ]);
    expect([zero.stderr, twin.stderr].join()).toMatch(
      /rank 0 cannot listen on port \d+ for the rendezvous store: Address already in use.*RANKZERO_PORT/s,
    );
  });

  it('lets strangers talk and goes on', async () => {
    nextPort += 2;
    const port = nextPort + 1;
    const stranger = `
      const net = require('node:net');
      const giveUp = setTimeout(() => process.exit(1), 30000);
      const attempt = () => {
        let connected = false;
        const socket = net.connect(${port}, '127.0.0.1').resume();
        socket.on('error', () => {});
        socket.on('connect', () => {
          connected = true;
          socket.write('GET / HTTP/1.1\\r\\n\\r\\n' + 'x'.repeat(10000));
        });
        socket.on('close', () => {
          if (!connected) return void setTimeout(attempt, 5);
          console.log('closed');
          clearTimeout(giveUp);
        });
      };
      attempt();`;
    const [noise, ...results] = await Promise.all([
      runProcess(['-e', stranger], {}),
      ...[0, 1].map((rank) => runProcess([fixture('faults.mjs'), 'lastCollectiveUnawaited'], environment(rank, {}))),
    ]);
    expect(noise.stdout).toContain('closed');
    expect(results.map(({ code }) => code)).toEqual([0, 0]);
  });
});

describe('death', () => {
  it('of one rank by SIGKILL ends the job within 5 s, and leaves neither processes nor memory', async () => {
    const pids: number[] = [];
    const { code, failure, milliseconds } = await runRanks(3, fixture('faults.mjs'), {
      args: ['killedBusy'],
      onLine: (_, line) => {
        const pid = /^pid (\d+)/.exec(line)?.[1];
        if (pid) pids.push(Number(pid));
      },
    });
    expect(code).toBe(137);
    expect(failure).toEqual({ rank: 1, message: 'killed by SIGKILL' });
    expect(milliseconds).toBeLessThan(6000);
    expect(pids.length).toBe(3);
    expect(pids.filter(isAlive)).toEqual([]);
    expect(pids.filter((pid) => sharedMemoryHolders().has(pid))).toEqual([]);
  });
});
