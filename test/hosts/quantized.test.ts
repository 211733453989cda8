// A quantised base on two hosts: each reads and quantises from its own files, or rank 0 sends bits; parts have the bits of the whole.
import { describe, expect, it } from 'vitest';
import { Lab, whyNoHosts } from './lab.ts';
import { multiFixture, runOnHosts } from './ranks.ts';

describe.skipIf(whyNoHosts)(`a quantised base on two hosts${whyNoHosts ? ` (${whyNoHosts})` : ''}`, () => {
  it.each([
    ['read on each', {}],
    ['read on each, with tensor parallelism', { tp: 2 }],
    ['with replicas', { shardingStrategy: 'HYBRID_SHARD', hybridShardDegree: 2 }],
  ])('%s', async (_, settings) => {
    using lab = new Lab(2);
    const ended = await runOnHosts(
      lab,
      [
        [0, 1],
        [2, 3],
      ],
      multiFixture('quantized.mjs'),
      {
        args: [JSON.stringify(settings)],
      },
    );
    for (const { code, stdout, stderr } of ended) {
      expect([code, stderr]).toEqual([0, '']);
      const { differing, losses, plain } = JSON.parse(stdout) as Record<string, unknown>;
      expect(differing).toEqual([]);
      expect(losses).toEqual(plain);
    }
  });
});
