// Loading on several hosts: what crosses the network, what each host reads, and that the weights are the same whichever way.
import { execFile } from 'node:child_process';
import { cpSync, mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { memoryOf } from '../multi/helpers.ts';
import { cleanEnvironment, Lab, whyNoHosts } from './lab.ts';
import { expectOnHosts, hostsFixture, multiFixture } from './ranks.ts';

const folder = mkdtempSync(join(tmpdir(), 'rankzero-loading-'));
const [model, other, half] = ['model', 'other', 'half'].map((name) => join(folder, name)) as [string, string, string];
const weightBytes = (dir: string): number =>
  readdirSync(dir)
    .filter((name) => name.endsWith('.safetensors'))
    .reduce((sum, name) => sum + statSync(join(dir, name)).size, 0);

beforeAll(async () => {
  if (whyNoHosts) return;
  const run = promisify(execFile);
  const env = cleanEnvironment();
  await run(process.execPath, [multiFixture('make_model.mjs'), 'small', model], { env });
  await run(process.execPath, [hostsFixture('variants.mjs'), model, other, half], { env });
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

interface Loaded {
  /** Bytes that reached each host while the model was wrapped. */
  received: number[];
  /** Bytes that the ranks of each host read from files, together. */
  read: number[];
  digests: string[];
}

async function load(
  placement: number[][],
  settings: object,
  dir = model,
  mountsOf?: (host: number) => Record<string, string>,
): Promise<Loaded> {
  using lab = new Lab(placement.length);
  const at = { BEGIN: [] as number[], LOADED: [] as number[] };
  const seen = { BEGIN: 0, LOADED: 0 };
  const world = placement.flat().length;
  const lines = await expectOnHosts(lab, placement, hostsFixture('load.mjs'), {
    args: [dir, JSON.stringify(settings)],
    env: { RANKZERO_QUIET: '' },
    ...(mountsOf ? { mountsOf } : {}),
    onLine: (_, line) => {
      if ((line === 'BEGIN' || line === 'LOADED') && ++seen[line] === world)
        at[line] = lab.hosts.map(({ wire }) => wire.received);
    },
  });
  const results = lines.map((text) => JSON.parse(/^RESULT (.*)$/m.exec(text)![1]!) as { read: number; digest: string });
  return {
    received: at.LOADED.map((bytes, i) => bytes - at.BEGIN[i]!),
    read: placement.map((ranks) => ranks.reduce((sum, rank) => sum + results[rank]!.read, 0)),
    digests: results.map(({ digest }) => digest),
  };
}

/** Headers of packets, heartbeats, greetings. */
const overhead = 1.03;
const chatter = 600_000;
const hidden = (dir: string) => (host: number) => (host > 0 ? { [dir]: 'empty' } : {}) as Record<string, string>;

describe.skipIf(whyNoHosts)(`loading on several hosts${whyNoHosts ? ` (${whyNoHosts})` : ''}`, () => {
  const settings: [string, number[][], object][] = [
    [
      'FULL_SHARD on 2 × 2',
      [
        [0, 1],
        [2, 3],
      ],
      { strategy: 'FULL_SHARD' },
    ],
    [
      'HYBRID_SHARD on 2 × 2',
      [
        [0, 1],
        [2, 3],
      ],
      { strategy: 'HYBRID_SHARD' },
    ],
    [
      'NO_SHARD on 2 × 2',
      [
        [0, 1],
        [2, 3],
      ],
      { strategy: 'NO_SHARD' },
    ],
    ['FULL_SHARD on 3 × 1', [[0], [1], [2]], { strategy: 'FULL_SHARD' }],
    ['tensor parallelism across 2 × 1', [[0], [1]], { strategy: 'FULL_SHARD', tp: 2 }],
  ];

  it.each(settings)(
    '%s: no weight crosses where all hosts have the files, else each once',
    async (_, placement, how) => {
      const whole = weightBytes(model);
      const shared = await load(placement, how);
      const sent = await load(placement, how, model, hidden(model));
      expect(shared.digests).toEqual(sent.digests);
      for (const [host, ranks] of placement.entries()) {
        expect(shared.received[host], 'received with shared files').toBeLessThan(chatter);
        const share = /NO|HYBRID/.test(JSON.stringify(how)) ? 1 : ranks.length / placement.flat().length;
        // Slices of columns are read together with what lies between them.
        const between = JSON.stringify(how).includes('tp') ? 1.3 : 1.01;
        expect(shared.read[host], 'read').toBeLessThan(share * whole * between + 2e6);
        expect(shared.read[host], 'read').toBeGreaterThan(share * whole * 0.9);
        if (host === 0) continue;
        expect(sent.received[host], 'received').toBeGreaterThan(share * whole * 0.9);
        expect(sent.received[host], 'received').toBeLessThan(whole * overhead + chatter);
      }
    },
  );

  it('16-bit weights cross as 16 bits, whatever the masters are', async () => {
    const whole = weightBytes(half);
    for (const strategy of ['FULL_SHARD', 'HYBRID_SHARD']) {
      const placement = [[0], [1]];
      const shared = await load(placement, { strategy }, half);
      const sent = await load(placement, { strategy }, half, hidden(half));
      expect(sent.digests).toEqual(shared.digests);
      expect(sent.received[1]).toBeLessThan(whole * overhead + chatter);
    }
  });

  it('1 GB from the files of one host keeps each rank at its shard and two units', async () => {
    const medium = join(folder, 'medium');
    const config = join(folder, 'config');
    await promisify(execFile)(process.execPath, [multiFixture('make_model.mjs'), 'medium', medium], {
      env: cleanEnvironment(),
    });
    cpSync(medium, config, { recursive: true, filter: (path) => !path.endsWith('.safetensors') });
    using lab = new Lab(2);
    const pids = new Map<number, number>();
    const peaks = [0, 0];
    const sample = (): void => {
      for (const [rank, pid] of pids) peaks[rank] = Math.max(peaks[rank]!, memoryOf(pid));
    };
    const timer = setInterval(sample, 20);
    const lines = await expectOnHosts(lab, [[0], [1]], multiFixture('fsdp_load.mjs'), {
      args: [medium],
      mountsOf: (host) => (host > 0 ? { [medium]: config } : {}) as Record<string, string>,
      onLine: (rank, line) => {
        const begin = /^BEGIN (\d+)/.exec(line);
        if (begin) pids.set(rank, Number(begin[1]));
        if (!line.startsWith('END')) return;
        sample();
        pids.delete(rank);
      },
    });
    clearInterval(timer);
    for (const [rank, text] of lines.entries()) {
      const { shard, units } = JSON.parse(/^END (.*)$/m.exec(text)![1]!) as { shard: number; units: number[] };
      const [first, second] = [...units].sort((a, b) => b - a) as [number, number];
      expect(peaks[rank]).toBeGreaterThan(0.9 * shard);
      expect(peaks[rank]! / 1e6, `rank ${rank}`).toBeLessThan((shard + first + second) / 1e6 + 150);
    }
  });

  it('another fine-tune of the same model at the same path on another host is not read', async () => {
    const same = await load([[0], [1]], { strategy: 'FULL_SHARD' });
    const found = await load([[0], [1]], { strategy: 'FULL_SHARD' }, model, (host) =>
      host > 0 ? { [model]: other } : {},
    );
    expect(statSync(join(other, 'model.safetensors')).size).toBe(statSync(join(model, 'model.safetensors')).size);
    expect(found.digests).toEqual(same.digests);
    expect(found.received[1]).toBeGreaterThan(weightBytes(model) * 0.45);
  });

  it('what a program changed on rank 0 is sent, and nothing else', async () => {
    const changed = 'model.layers.3.mlp.up_proj.weight';
    const shared = await load([[0], [1]], { strategy: 'FULL_SHARD', changed });
    const sent = await load([[0], [1]], { strategy: 'FULL_SHARD', changed }, model, hidden(model));
    const plain = await load([[0], [1]], { strategy: 'FULL_SHARD' });
    expect(shared.digests).toEqual(sent.digests);
    expect(shared.digests).not.toEqual(plain.digests);
    // One of eight layers, half of which is for the other host.
    expect(shared.received[1]).toBeGreaterThan(1e6);
    expect(shared.received[1]).toBeLessThan(weightBytes(model) / 8);
  });
});
