// The collectives of ranks on several hosts against their definitions: the same bodies as on one host.
import { describe, expect, it } from 'vitest';
import { Lab, whyNoHosts } from './lab.ts';
import { expectOnHosts, multiFixture } from './ranks.ts';

const placements: [string, number[][]][] = [
  ['2 hosts × 1', [[0], [1]]],
  [
    '2 hosts × 2, cyclic',
    [
      [0, 2],
      [1, 3],
    ],
  ],
  ['3 hosts × 1', [[0], [1], [2]]],
  ['2 and 1 ranks', [[0, 1], [2]]],
  ['1 and 3 ranks', [[0], [1, 2, 3]]],
];

describe.skipIf(whyNoHosts)(`collectives between hosts${whyNoHosts ? ` (${whyNoHosts})` : ''}`, () => {
  it.each(placements)('give their definition on %s', async (_, placement) => {
    using lab = new Lab(placement.length);
    const out = await expectOnHosts(lab, placement, multiFixture('collectives.mjs'), {
      timeout: 100_000,
      env: { PLACEMENT: JSON.stringify(placement) },
    });
    expect(out).toEqual(placement.flat().map(() => 'ok\n'));
  });
});
