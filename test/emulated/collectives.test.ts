// Collectives on device tensors: the call sites of NCCL, the watch over it, and its stand-in between real processes.
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { available, buildEmulated, nodeVariables, type Outcome, run, runNode, seeds } from './emulated.ts';

const fixture = join(import.meta.dirname, 'fixtures/collectives.mjs');
const launcher = join(import.meta.dirname, '../../dist/cli/main.js');

describe.skipIf(!available)('collectives on devices, emulated', () => {
  beforeAll(buildEmulated, 600_000);

  const job = (ranks: number, scenario: string, seed: number, env: Record<string, string> = {}) =>
    runNode([launcher, 'run', '--nproc', String(ranks), fixture, scenario], seed, env);

  it.each([1, 2, 4].flatMap((ranks) => seeds.map((seed) => [ranks, seed] as const)))(
    'give the values of %i ranks, seed %i',
    async (ranks, seed) => {
      const { code, stdout, stderr } = await job(ranks, 'all', seed);
      expect(stdout.match(/passed/g)?.length, stderr).toBe(ranks);
      expect(code).toBe(0);
    },
  );

  /** What rank 0 of two says. Without the launcher, which would end it with rank 1. */
  const rank0 = async (scenario: string, extra: Record<string, string> = {}): Promise<Outcome> => {
    const port = 35_000 + (process.pid % 500) * 4;
    const job = { ...extra, WORLD_SIZE: '2', MASTER_ADDR: '127.0.0.1', MASTER_PORT: String(port) };
    const rank = (RANK: string) => runNode([fixture, scenario], 1, { ...job, RANK });
    const [outcome] = await Promise.all([rank('0'), rank('1')]);
    return outcome;
  };

  it('end with an error that names the rank that died, where their values are read', async () => {
    const { code, stdout } = await rank0('death');
    expect(code).toBe(1);
    expect(stdout).not.toContain('read');
    expect(stdout).toMatch(
      /caught ERR_PEER: rank 1 \(pid \d+\) died .*; this rank \(0\) was in all_reduce #\d+ of group world/,
    );
  });

  // The kernel of the next op is loaded behind a collective whose peer is dead, under a lock that whoever asks for events needs.
  it('end with that error where the driver answers nobody until they do', async () => {
    const { code, stdout } = await rank0('death', { RANKZERO_EMULATED_LOCKED_QUERIES: '1', RANKZERO_TIMEOUT: '30' });
    expect(stdout).toMatch(/^caught ERR_PEER: rank 1 .* died .*was in all_reduce #\d+ of group world/);
    expect(code).toBe(1);
  });

  // The library frees what is aborted, so that a call in progress would use memory that is gone.
  it('are not aborted under a call that is being enqueued', async () => {
    const { code, stdout, stderr } = await rank0('death in a call', { RANKZERO_EMULATED_NCCL_CALL_MS: '150' });
    expect(stderr).not.toContain('aborted');
    expect(stdout).toMatch(/caught ERR_PEER: rank 1 \(pid \d+\) died .*was in all_reduce #\d+ of group world/);
    expect(code).toBe(1);
  });

  // As a worker thread, whose runtime goes while the call that connects is still under way.
  it('end with that error while they connect, and nothing of them outlives the runtime', async () => {
    const port = 37_000 + (process.pid % 500) * 4;
    const place = { WORLD_SIZE: '2', MASTER_ADDR: '127.0.0.1', MASTER_PORT: String(port) };
    const [{ code, stdout, stderr }] = await Promise.all([
      runNode([fixture, 'worker'], 1, { RANK: '0', ...place, RANKZERO_EMULATED_SET_DEVICE_MS: '1500' }),
      runNode([fixture, 'connects'], 1, { RANK: '1', ...place, RANKZERO_EMULATED_DIES_CONNECTING: '1' }),
    ]);
    expect(stderr).not.toContain('AddressSanitizer:');
    expect(stdout).toMatch(/^caught ERR_PEER: rank 1 .* died .*connecting devices/);
    expect(stdout).toMatch(/outlived\n$/);
    expect(code).toBe(0);
  });

  /** Four ranks, one of which does not come to two groups. */
  const stuck = async (extra: Record<string, string> = {}): Promise<Outcome[]> => {
    const script = join(import.meta.dirname, 'fixtures/stuck.mjs');
    const port = 39_000 + (process.pid % 500) * 4;
    const job = { WORLD_SIZE: '4', MASTER_ADDR: '127.0.0.1', MASTER_PORT: String(port), RANKZERO_TIMEOUT: '4' };
    const env = { ...process.env, ...nodeVariables(1), ...job, ...extra };
    return Promise.all(
      [0, 1, 2, 3].map((RANK) => run(process.execPath, [script], { ...env, RANK: `${RANK}` }, 60_000)),
    );
  };

  // One after the other they would wait for ever: an abort waits for the kernels of the other communicator.
  it('of several communicators are aborted together, and every rank ends', async () => {
    for (const { code, stdout, stderr } of await stuck()) {
      expect(stdout, stderr).toMatch(/^caught ERR_TIMEOUT: /);
      expect(code).toBe(1);
    }
  });

  it('of several communicators end the process with the error where NCCL cannot abort them together', async () => {
    const ranks = await stuck({ RANKZERO_EMULATED_NCCL_VERSION: '22105' });
    for (const { code, stderr } of ranks.slice(0, 3)) {
      expect(stderr).toMatch(/^rankzero: ERR_TIMEOUT: .*NCCL 2\.21\.5 cannot abort its 2 communicators together/m);
      expect(code).toBe(1);
    }
    expect(ranks[3]!.stdout).toMatch(/^caught ERR_TIMEOUT: /);
  });

  it('need NCCL on every rank: the error names it and the place that was tried', async () => {
    const { code, stderr } = await job(2, 'all', 1, { RANKZERO_NCCL_PATH: '/nowhere/libnccl.so.2' });
    expect(code).not.toBe(0);
    expect(stderr).toMatch(/devices of several ranks need NCCL.*rank 0: NCCL[\s\S]*\/nowhere\/libnccl\.so\.2/);
  });
});
