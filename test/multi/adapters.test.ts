// Adapters that PEFT made, on real ranks: every division gives PEFT's numbers, whichever rank had the files.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, it } from 'vitest';
import { type AdapterSettings, expectPeft } from './adapter_run.ts';

const names = ['lora-llama', 'lora-llama-patterns', 'lora-llama-dora', 'lora-gpt-neox', 'lora-mixtral'] as const;

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'rankzero-adapters-'));
});
afterAll(() => rm(folder, { recursive: true }));

describe('adapters equal PEFT', () => {
  it('on one rank, in every flow', async () => {
    await expectPeft(folder, 1, [
      ...names.map((name): AdapterSettings => ({ name, flow: 'A' })),
      { name: 'lora-llama', flow: '0' },
      { name: 'lora-llama', flow: 'C' },
    ]);
  });

  it('on two ranks, sharded', async () => {
    await expectPeft(folder, 2, [
      ...names.map((name): AdapterSettings => ({ name, flow: 'A' })),
      { name: 'lora-llama-patterns', flow: '0' },
      { name: 'lora-llama', flow: 'A', strategy: 'SHARD_GRAD_OP' },
      { name: 'lora-llama-dora', flow: 'A', strategy: 'NO_SHARD' },
      { name: 'lora-gpt-neox', flow: 'A', checkpoint: true },
    ]);
  });

  it('on two ranks that share each layer', async () => {
    await expectPeft(folder, 2, [
      ...names.map((name): AdapterSettings => ({ name, flow: 'C', tp: 2 })),
      { name: 'lora-llama', flow: 'B', tp: 2 },
      { name: 'lora-llama-dora', flow: 'C', tp: 2, sequenceParallel: true },
    ]);
  });

  it('on four ranks: two shares of two shards, and four shares', async () => {
    await expectPeft(
      folder,
      4,
      names.map((name): AdapterSettings => ({ name, flow: 'C', tp: 2 })),
    );
    await expectPeft(folder, 4, [
      ...names.map((name): AdapterSettings => ({ name, flow: 'C', tp: 4 })),
      { name: 'lora-llama', flow: 'B', tp: 4 },
    ]);
    await expectPeft(folder, 4, [
      { name: 'lora-llama', flow: 'A', strategy: 'HYBRID_SHARD', degree: 2 },
      { name: 'lora-mixtral', flow: 'A', strategy: '_HYBRID_SHARD_ZERO2', degree: 2 },
    ]);
  });
});
