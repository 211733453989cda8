// Adapters on several hosts: PEFT's numbers, sharded over hosts and with layers that hosts share.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, it } from 'vitest';
import { adapterJobs, judgeAdapters } from '../multi/adapter_run.ts';
import { Lab, whyNoHosts } from './lab.ts';
import { expectOnHosts, multiFixture } from './ranks.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'rankzero-adapters-'));
});
afterAll(() => rm(folder, { recursive: true }));

describe.skipIf(whyNoHosts)(`adapters on two hosts${whyNoHosts ? ` (${whyNoHosts})` : ''}`, () => {
  it('equal PEFT', async () => {
    using lab = new Lab(2);
    const jobs = adapterJobs(folder, 4, [
      { name: 'lora-llama', flow: 'A' },
      { name: 'lora-gpt-neox', flow: 'A', strategy: 'HYBRID_SHARD' },
      { name: 'lora-mixtral', flow: 'C', tp: 4 },
      { name: 'lora-llama-dora', flow: 'C', tp: 4 },
    ]);
    const placement = [
      [0, 1],
      [2, 3],
    ];
    const args = [JSON.stringify(jobs)];
    await judgeAdapters(
      jobs,
      await expectOnHosts(lab, placement, multiFixture('adapters.mjs'), { args, timeout: 100_000 }),
    );
  });
});
