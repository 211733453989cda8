// Emulated devices on two hosts: their collectives go over the network between the hosts, and training on them gives the numbers
// of one process.
import { beforeAll, describe, expect, it } from 'vitest';
import { available, buildEmulated, nodeVariables } from '../emulated/emulated.ts';
import { expectReference, relative, resultsOf, run, type Settings } from '../multi/reference_run.ts';
import { Lab, whyNoHosts } from './lab.ts';
import { expectOnHosts, hostsFixture, multiFixture, type RanksOptions, runOnHosts } from './ranks.ts';

const placement = [
  [0, 1],
  [2, 3],
];
const one = { name: 'llama', world: 4, device: 'cuda', steps: 10 } as const;
const settings: [title: string, bound: number, Settings][] = [
  ['FULL_SHARD', 1e-6, { ...one, steps: 4, flow: 'A', shardingStrategy: 'FULL_SHARD' }],
  ['HYBRID_SHARD', 1e-6, { ...one, steps: 4, flow: 'A', shardingStrategy: 'HYBRID_SHARD' }],
  ['TP 2 within a host', 1e-5, { ...one, flow: 'C', tp: 2 }],
];

describe.skipIf(whyNoHosts || !available)(`devices of several hosts${whyNoHosts ? ` (${whyNoHosts})` : ''}`, () => {
  beforeAll(buildEmulated, 600_000);

  /** Hosts may have different numbers of devices. */
  const devices = (seed: number): RanksOptions => ({
    env: nodeVariables(seed),
    envOf: (rank) => ({ RANKZERO_EMULATED_DEVICES: rank < 2 ? '2' : '3' }),
  });

  it.each(settings)('train to the numbers of one process: %s', { timeout: 240_000 }, async (_, bound, these) => {
    using lab = new Lab(2);
    const [h0] = lab.hosts;
    const { flow: _flow, tp: _tp, device: _device, shardingStrategy: _strategy, ...alone } = these;
    const [wanted] = await run({ ...alone, world: 1 });
    const script = multiFixture('fsdp_reference.mjs');
    const args = [JSON.stringify([these])];
    const out = await expectOnHosts(lab, placement, script, { ...devices(1), args, timeout: 200_000 });
    const [results] = resultsOf(out, 1);
    expectReference(results!, these);
    for (const [i, loss] of results![0]!.losses.entries())
      expect(relative(loss, wanted!.losses[i]!), `loss ${i}`).toBeLessThan(bound);
    expect(h0!.wire.sent).toBeGreaterThan(1e5);
  });

  it('wait while a link is down for 5 s, and go on', { timeout: 120_000 }, async () => {
    using lab = new Lab(2);
    const [h0] = lab.hosts;
    let isCut = false;
    const onLine = (rank: number, line: string): void => {
      if (rank !== 0 || line !== 'step 5') return;
      isCut = true;
      h0!.setLink(false);
      setTimeout(() => h0!.setLink(true), 5000);
    };
    const script = hostsFixture('devices.mjs');
    const out = await expectOnHosts(lab, placement, script, {
      ...devices(2),
      args: ['outage'],
      onLine,
      timeout: 90_000,
    });
    for (const text of out) expect(text).toMatch(/passed\n$/);
    expect(isCut).toBe(true);
  });

  it('end with an error that names a rank of another host that died', { timeout: 120_000 }, async () => {
    using lab = new Lab(2);
    const ended = await runOnHosts(lab, placement, hostsFixture('devices.mjs'), { ...devices(3), args: ['killed'] });
    for (const { code, stdout } of ended.slice(0, 3)) {
      expect(stdout).toMatch(/caught ERR_PEER: rank 3 \(pid \d+[^)]*\).* died/);
      expect(code).toBe(1);
    }
  });
});
