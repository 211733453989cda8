// The vocabulary split over 1, 2 and 4 ranks gives what the whole of it gives on one.
import { describe, expect, it } from 'vitest';
import { expectRanks, fixture } from './helpers.ts';

interface Case {
  errors: Record<string, number>;
  same: string;
}

describe('a vocabulary split over ranks', () => {
  it.each([1, 2, 4])('gives losses, logits and gradients of the whole one, on %i ranks', async (world) => {
    const { stdout } = await expectRanks(world, fixture('vocab_parallel.mjs'));
    const reports = stdout.map((text) => JSON.parse(text) as Record<string, Case> & { withoutLabels: string[] });
    for (const { withoutLabels, ...cases } of reports) {
      expect(withoutLabels).toEqual(['NaN', '0']);
      expect(Object.keys(cases).length).toBe(10);
      for (const [name, { errors, same }] of Object.entries(cases)) {
        // bfloat16: parts of dx are rounded before they are summed, and again after.
        const gradients = name.startsWith('float32') ? 2e-6 : 6e-3;
        const bounds: Record<string, number> = {
          loss: 1e-6,
          lossWithoutGradients: 0,
          dx: gradients,
          dw: name.startsWith('float32') ? 2e-6 : 1e-3,
        };
        expect(Object.keys(errors).sort()).toEqual(Object.keys(bounds).sort());
        for (const [what, error] of Object.entries(errors))
          expect(error, `${name}: ${what}`).toBeLessThanOrEqual(bounds[what]!);
        expect(same, 'the same bits on every rank').toBe(reports[0]![name]!.same);
      }
    }
  });
});
