// Adapters on emulated devices: PEFT's numbers, and merging in the shards.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, it } from 'vitest';
import { expectPeft } from '../multi/adapter_run.ts';
import { available, buildEmulated, nodeVariables } from './emulated.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'rankzero-adapters-'));
});
afterAll(() => rm(folder, { recursive: true }));

describe.skipIf(!available)('adapters on emulated devices equal PEFT', () => {
  beforeAll(buildEmulated, 600_000);

  it('sharded over two, and with layers that two share', async () => {
    await expectPeft(
      folder,
      2,
      [
        { name: 'lora-llama', flow: 'A', device: 'cuda', checkpoint: true },
        { name: 'lora-llama-dora', flow: 'C', tp: 2, device: 'cuda' },
      ],
      nodeVariables(1),
    );
  });
});
