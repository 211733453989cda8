// Training on several hosts gives the numbers of Transformers and of one process, and the same bits on all ranks: a pairwise
// subset of the product, or with RANKZERO_TEST_PRODUCT=all (`npm run test:hosts`) the whole.
import { beforeAll, describe, expect, it } from 'vitest';
import { expectReference, type Result, relative, resultsOf, runAll } from '../multi/reference_run.ts';
import { familyCases } from '../reference/family.ts';
import { Lab, whyNoHosts } from './lab.ts';
import { jobsOf, pairwise, wholeProduct } from './product.ts';
import { expectOnHosts, multiFixture } from './ranks.ts';

const isWhole = process.env.RANKZERO_TEST_PRODUCT === 'all';
const all = wholeProduct();
const jobs = jobsOf(isWhole ? all : pairwise(all));

describe.skipIf(whyNoHosts)(`training on several hosts${whyNoHosts ? ` (${whyNoHosts})` : ''}`, () => {
  const alone = new Map<string, Result>();
  beforeAll(async () => {
    const results = await runAll(familyCases.map((name) => ({ name, world: 1 })));
    for (const [i, name] of familyCases.entries()) alone.set(name, results[i]![0]!);
  }, 120_000);

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
        for (const [step, loss] of alone.get(name)!.losses.entries()) {
          const difference = relative(results[0]!.losses[step]!, loss);
          const bound = tp === 1 || step === 0 ? 1e-6 : 1e-5;
          expect(difference, `${name}, tp ${tp}, flow ${flow}, ${shardingStrategy}: loss ${step}`).toBeLessThan(bound);
        }
      }
    },
  );
});
