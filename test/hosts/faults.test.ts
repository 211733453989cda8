// What goes wrong on several hosts while a job computes: it goes on with the right numbers, or every rank that is left ends with an
// error that names rank and host, every launcher with one exit code, and nothing stays behind. A hang is a process that the lab kills.
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  caught,
  expectNothingLeft,
  expectRight,
  type LaunchedJob,
  type RanksJob,
  said,
  startLaunchers,
  startRanks,
  verdictOf,
} from './jobs.ts';
import { type Host, type HostProcess, Lab, whyNoHosts } from './lab.ts';
import { hostsFixture, multiFixture, runOnHosts } from './ranks.ts';

const silence = { RANKZERO_HEARTBEAT_TIMEOUT: '5' };

describe.skipIf(whyNoHosts)(`faults on several hosts${whyNoHosts ? `: ${whyNoHosts}` : ''}`, () => {
  let lab: Lab;
  let h1: Host;

  beforeEach(() => {
    lab = new Lab(2);
    h1 = lab.hosts[1]!;
  });
  afterEach(() => lab[Symbol.dispose]());

  /** The job in both ways, once every rank has done a step. */
  async function startBoth(options: Parameters<typeof startRanks>[1] = {}): Promise<[RanksJob, LaunchedJob]> {
    const jobs: [RanksJob, LaunchedJob] = [startRanks(lab, options), startLaunchers(lab, options)];
    await Promise.all(jobs.map(({ running }) => running));
    return jobs;
  }

  /** Each of `results` ended with `code` and said first why. */
  function expectVerdict(results: readonly HostProcess[], code: number, text: RegExp): void {
    for (const result of results) {
      expect(result.code, said(result)).toBe(code);
      expect(verdictOf(result)).toMatch(text);
    }
  }

  describe('a process is killed', () => {
    it('one rank: the others name it, and launchers exit with its code', async () => {
      const [ranks, launched] = await startBoth({ env: silence });
      process.kill(ranks.pids[2]!, 'SIGKILL');
      process.kill(launched.pids[2]!, 'SIGKILL');
      const results = await ranks.ended;
      for (const rank of [0, 1]) expect(caught(results[rank]!)).toMatch(/^ERR_PEER: rank 2 \(pid \d+ on h1\) died /);
      expectVerdict(await launched.ended, 137, /^rank 2 on h1 failed: killed by SIGKILL$/);
      await expectNothingLeft(lab.hosts);
    });

    it('rank 0, which serves the store', async () => {
      const [ranks, launched] = await startBoth({ env: silence });
      process.kill(ranks.pids[0]!, 'SIGKILL');
      process.kill(launched.pids[0]!, 'SIGKILL');
      const results = await ranks.ended;
      for (const rank of [1, 2])
        expect(caught(results[rank]!)).toMatch(/^ERR_PEER: rank 0 \(pid \d+ on h0\), which holds the store, died /);
      expectVerdict(await launched.ended, 137, /^rank 0 on h0 failed: killed by SIGKILL$/);
      await expectNothingLeft(lab.hosts);
    });

    it.each([0, 1])('the launcher of node %i', async (victim) => {
      const { running, launchers, ended } = startLaunchers(lab, { env: silence });
      await running;
      process.kill(launchers[victim]!, 'SIGKILL');
      const survivor = (await ended)[1 - victim]!;
      expectVerdict([survivor], 1, new RegExp(`^node ${victim} \\(h${victim}\\) failed: its launcher is gone$`));
      await expectNothingLeft(lab.hosts);
    });
  });

  it('a rank that leaves early is an error of those that wait for it', async () => {
    const options = { args: ['exitsEarly'], env: { ...silence, CATCH: '1' } };
    const [zero] = await runOnHosts(lab, [[0], [1]], multiFixture('faults.mjs'), options);
    expect(caught(zero!)).toMatch(
      /^ERR_PEER: rank 1 \(pid \d+ on h1\) left the job while rank 0 waits for it in all_reduce #2/,
    );
    await expectNothingLeft(lab.hosts);
  });

  describe('a host', () => {
    it.each([0, 1])('that vanishes is named by its silence (h%i)', async (victim) => {
      const [ranks, launched] = await startBoth({ env: silence });
      // Nothing that says goodbye leaves the host.
      lab.hosts[victim]!.setLink(false);
      lab.hosts[victim]!.killAll();
      const results = await ranks.ended;
      const lost =
        victim === 0
          ? /^ERR_PEER: rank 0 \(pid \d+ on h0\), which holds the store, has been silent for 5 s /
          : /^ERR_PEER: rank [12] \(pid \d+ on h1\) has been silent for 5 s /;
      for (const rank of victim === 0 ? [1, 2] : [0]) expect(caught(results[rank]!)).toMatch(lost);
      expectVerdict(
        [(await launched.ended)[1 - victim]!],
        1,
        new RegExp(` on h${victim}\\b.* silent|\\(h${victim}\\) failed`),
      );
      await expectNothingLeft(lab.hosts);
    });

    it('that vanishes while rank 0 waits for its ranks to leave', async () => {
      let isDone!: () => void;
      const done = new Promise<void>((resolve) => {
        isDone = resolve;
      });
      const ended = runOnHosts(lab, [[0], [1]], hostsFixture('steps.mjs'), {
        args: ['0', '1000'],
        env: { ...silence, CATCH: '1', STAYS: '1' },
        onLine: (rank, line) => rank === 0 && line.startsWith('right') && isDone(),
      });
      await Promise.race([done, ended]);
      h1.setLink(false);
      h1.killAll();
      const [zero] = await ended;
      expect(zero!.code, said(zero!)).toBe(0);
      await expectNothingLeft(lab.hosts);
    });

    it.each([0, 1])('that is stopped is named, and ends when it goes on (h%i)', async (victim) => {
      const [ranks, launched] = await startBoth({ env: silence });
      lab.hosts[victim]!.signalAll('SIGSTOP');
      const other = lab.hosts[1 - victim]!;
      while (other.pids.length > 0) await sleep(100);
      lab.hosts[victim]!.signalAll('SIGCONT');
      const results = await ranks.ended;
      const lost =
        victim === 0
          ? /^ERR_PEER: rank 0 \(pid \d+ on h0\), which holds the store, has been silent for 5 s /
          : /^ERR_PEER: rank [12] \(pid \d+ on h1\) has been silent for 5 s /;
      for (const rank of victim === 0 ? [1, 2] : [0]) expect(caught(results[rank]!)).toMatch(lost);
      for (const result of results) expect(caught(result)).toMatch(/^ERR_PEER: rank \d \(pid \d+ on h\d\)/);
      expectVerdict(await launched.ended, 1, /\bh\d\b/);
      await expectNothingLeft(lab.hosts);
    });

    it('whose JavaScript does not go on is waited for', async () => {
      const env = { RANKZERO_HEARTBEAT_TIMEOUT: '2', BLOCK: '5000' };
      const [ranks, launched] = await startBoth({ env, seconds: 1 });
      expectRight([...(await ranks.ended), ...(await launched.ended)]);
      await expectNothingLeft(lab.hosts);
    });
  });

  describe('a link', () => {
    it('that is down for 5 s delays the job', async () => {
      const [ranks, launched] = await startBoth({ env: { RANKZERO_HEARTBEAT_TIMEOUT: '15' }, seconds: 3 });
      h1.setLink(false);
      await sleep(5000);
      h1.setLink(true);
      expectRight([...(await ranks.ended), ...(await launched.ended)]);
      await expectNothingLeft(lab.hosts);
    });

    it('that stays down ends it on both sides', async () => {
      const [ranks, launched] = await startBoth({ env: silence });
      h1.setLink(false);
      const results = await ranks.ended;
      expect(caught(results[0]!)).toMatch(/^ERR_PEER: rank [12] \(pid \d+ on h1\) has been silent for 5 s /);
      for (const rank of [1, 2])
        expect(caught(results[rank]!)).toMatch(
          /^ERR_PEER: rank 0 \(pid \d+ on h0\), which holds the store, has been silent for 5 s /,
        );
      const [zero, one] = await launched.ended;
      expectVerdict([zero!], 1, /\bh1\b/);
      expectVerdict([one!], 1, /\bh0\b/);
      await expectNothingLeft(lab.hosts);
    });

    it('with 100 ms and 1 % loss carries the job', async () => {
      h1.shape('delay 100ms loss 1%');
      const [ranks, launched] = await startBoth({ env: silence, seconds: 1, elements: 5000 });
      expectRight([...(await ranks.ended), ...(await launched.ended)]);
      await expectNothingLeft(lab.hosts);
    });
  });
});
