// Training on several hosts gives the numbers of Transformers and of one process, and the same bits on all ranks: a pairwise
// subset of the product, or with RANKZERO_TEST_PRODUCT=all (`npm run test:hosts`) the whole.
import { describe, expect, it } from 'vitest';
import { expectReference, relative, resultsOf } from '../multi/reference_run.ts';
import { trainingRun } from '../reference/cases.ts';
import { Lab, whyNoHosts } from './lab.ts';
import { jobsOf, pairwise, wholeProduct } from './product.ts';
import { expectOnHosts, multiFixture } from './ranks.ts';

const isWhole = process.env.RANKZERO_TEST_PRODUCT === 'all';
const all = wholeProduct();
const jobs = jobsOf(isWhole ? all : pairwise(all));

describe.skipIf(whyNoHosts)(`training on several hosts${whyNoHosts ? ` (${whyNoHosts})` : ''}`, () => {
  it.each(jobs)(
    'gives the reference: $title',
    { timeout: isWhole ? 3_600_000 : 400_000 },
    async ({ placement, settings }) => {
      using lab = new Lab(placement.ranks.length);
      const out = await expectOnHosts(lab, placement.ranks, multiFixture('fsdp_reference.mjs'), {
        args: [JSON.stringify(settings)],
        timeout: isWhole ? 3_500_000 : 390_000,
      });
      for (const [i, results] of resultsOf(out, settings.length).entries()) {
        const { name, tp, flow, shardingStrategy } = settings[i]!;
        expectReference(results, settings[i]!);
        const first = relative(results[0]!.losses[0]!, trainingRun(name).losses[0]!);
        expect(first, `${name}, tp ${tp}, flow ${flow}, ${shardingStrategy}: first loss`).toBeLessThan(1e-6);
      }
    },
  );
});
