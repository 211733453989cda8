// Places in shared memory, descriptors of products and tensor maps against those of CuTe, as they are recorded in cute/.
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { available, buildEmulated, emulated } from './emulated.ts';

if (!available) console.log("tiles.test.ts: the build found no headers of CUDA, so tiles are not compared with CuTe's");

const linesOf = (text: string) => text.trim().split('\n');

describe.skipIf(!available)('tiles of attention on Hopper', () => {
  beforeAll(buildEmulated, 600_000);

  it('are those of CuTe', () => {
    const recorded = linesOf(readFileSync(join(import.meta.dirname, 'cute/recorded.txt'), 'utf8'));
    expect(recorded.length).toBe(6 * 3 + 3 + 4);
    const ours = linesOf(execFileSync(join(emulated, 'tiles_emulated'), { encoding: 'utf8' }));
    expect(ours).toEqual(recorded);
  });
});
