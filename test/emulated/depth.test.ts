// However far ahead the program is, and however slow the host: the queues of a device are finite, and nothing hangs. The emulator's
// keep the whole driver waiting while one of them is full.
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { available, buildEmulated, runNode } from './emulated.ts';

const fixture = join(import.meta.dirname, 'fixtures/depth.mjs');

describe.skipIf(!available)('finite queues of a device', () => {
  beforeAll(buildEmulated, 600_000);

  it.each(['save', 'load', 'step'])('do not stop what is far ahead of a slow host: %s', async (scenario) => {
    const env = { RANKZERO_EMULATED_QUEUE: '8', RANKZERO_CUDA_QUEUE: '6' };
    const { stdout, stderr } = await runNode([fixture, scenario], 1, env, 60_000);
    expect(stdout, stderr).toBe('passed\n');
  });

  // That the emulator would see it: with a queue of the device that is shorter than the program thinks.
  it.each(['step'])('stop it where the program fills them: %s', async (scenario) => {
    const env = { RANKZERO_EMULATED_QUEUE: '8', RANKZERO_CUDA_QUEUE: '1000' };
    const { stdout } = await runNode([fixture, scenario], 1, env, 5_000);
    expect(stdout).toBe('\ntimed out\n');
  });
});
