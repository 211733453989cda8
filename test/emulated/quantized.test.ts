// A quantised base on emulated devices: parts have the bits of the whole, and training those of a model with what the weights stand
// for, since both multiply the same scratch weight.
import { beforeAll, describe, expect, it } from 'vitest';
import { expectRanks, fixture } from '../multi/helpers.ts';
import { available, buildEmulated, nodeVariables } from './emulated.ts';

describe.skipIf(!available)('a quantised base on emulated devices', () => {
  beforeAll(buildEmulated, 600_000);

  it.each([
    [1, 1, {}],
    [2, 2, { mixed: 'bfloat16' }],
    [3, 2, { tp: 2, scheme: 'int8' }],
  ])('seed %i, %i ranks, %o', async (seed, world, settings) => {
    const args = [JSON.stringify({ ...settings, device: 'cuda' })];
    // Without what a device would do together for weights that are not quantised: one GEMM for q, k and v has other last bits.
    const env = { ...nodeVariables(seed), RANKZERO_FUSIONS: 'sums,casts,sinks' };
    const { stdout } = await expectRanks(world, fixture('quantized.mjs'), { args, env });
    for (const text of stdout) {
      const { differing, losses, plain } = JSON.parse(text) as Record<string, unknown>;
      expect(differing).toEqual([]);
      expect(losses).toEqual(plain);
    }
  });
});
