// Faults that take long: training over a bad link, and ranks that are killed at any moment. `npm run test:faults`.
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { expectReference, resultsOf, type Settings } from '../multi/reference_run.ts';
import { caught, expectNothingLeft, said, startLaunchers, startRanks, verdictOf } from './jobs.ts';
import { type Host, Lab, whyNoHosts } from './lab.ts';
import { expectOnHosts, multiFixture } from './ranks.ts';

const isAsked = process.env.RANKZERO_TEST_FAULTS === 'all';

/** Runs of the reference, one after the other in one job. */
const runsOf = (families: readonly string[], strategies: readonly string[]): Settings[] =>
  families.flatMap((name) =>
    strategies.map((shardingStrategy) => ({ name, shardingStrategy, world: 3, flow: 'B' as const })),
  );
const badLinks: readonly [string, Settings[]][] = [
  ['delay 100ms loss 1%', runsOf(['llama'], ['FULL_SHARD'])],
  ['down', runsOf(['llama', 'mixtral', 'gpt-neox'], ['FULL_SHARD', 'SHARD_GRAD_OP', 'NO_SHARD'])],
];

/** Pulls the cable for 5 s, puts it back for 8, and so on until `signal`. Resolves to how often. */
async function pullAgainAndAgain(host: Host, signal: AbortSignal): Promise<number> {
  let count = 0;
  await sleep(700);
  while (!signal.aborted) {
    host.setLink(false);
    await sleep(5000);
    host.setLink(true);
    count++;
    await sleep(8000, undefined, { signal }).catch(() => {});
  }
  return count;
}

describe.skipIf(whyNoHosts || !isAsked)('long faults on several hosts', () => {
  it.each(badLinks)(
    'training over a bad link gives the reference (%s)',
    { timeout: 3_600_000 },
    async (words, settings) => {
      using lab = new Lab(2);
      const h1 = lab.hosts[1]!;
      const over = new AbortController();
      const pulls = words === 'down' ? pullAgainAndAgain(h1, over.signal) : Promise.resolve(0);
      if (words !== 'down') h1.shape(words);
      const start = performance.now();
      const out = await expectOnHosts(lab, [[0], [1, 2]], multiFixture('fsdp_reference.mjs'), {
        args: [JSON.stringify(settings)],
        env: { RANKZERO_HEARTBEAT_TIMEOUT: '15' },
        timeout: 3_500_000,
      }).finally(() => over.abort());
      const seconds = Math.round((performance.now() - start) / 1000);
      console.log(`${words}: ${seconds} s, the cable was out ${await pulls} times`);
      for (const [i, results] of resultsOf(out, settings.length).entries()) expectReference(results, settings[i]!);
    },
  );

  it('a rank that is killed at any moment is named, and nothing is left', { timeout: 3_600_000 }, async () => {
    for (let round = 0; round < 30; round++) {
      using lab = new Lab(2);
      const victim = round % 3;
      const delay = round * 60;
      const env = { RANKZERO_HEARTBEAT_TIMEOUT: '5', RANKZERO_TIMEOUT: '10' };
      const jobs = [startRanks(lab, { env }), startLaunchers(lab, { env })] as const;
      await Promise.all(
        jobs.map(async ({ pids }) => {
          while (pids[victim] === undefined) await sleep(5);
          await sleep(delay);
          process.kill(pids[victim], 'SIGKILL');
        }),
      );
      const [ranks, launchers] = await Promise.all(jobs.map(({ ended }) => ended));
      const what = `rank ${victim} after ${delay} ms: `;
      for (const [rank, result] of ranks!.entries())
        if (rank !== victim) expect(what + caught(result)).toMatch(/: ERR_(PEER|TIMEOUT): .*\brank \d/);
      for (const result of launchers!) {
        expect(result.code, what + said(result)).toBe(137);
        expect(verdictOf(result)).toBe(`rank ${victim} on h${victim === 0 ? 0 : 1} failed: killed by SIGKILL`);
      }
      await expectNothingLeft(lab.hosts);
    }
  });
});
