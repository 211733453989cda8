// What the emulator is for: a barrier, a wait, a bound or a copy's order that is missing must be seen.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { available, buildEmulated, environment, run, runNode, seeds } from './emulated.ts';
import { buildMutant, type Mutation } from './mutations.ts';

const collectives = join(import.meta.dirname, 'fixtures/collectives.mjs');
const launcher = join(import.meta.dirname, '../../dist/cli/main.js');

const mutations: (Mutation & { tests: string; seen: RegExp })[] = [
  {
    what: 'the barrier behind partial sums',
    file: 'cuda/reduce.h',
    from: '  if (lane == 0) partial[warp] = value;\n  __syncthreads();\n',
    to: '  if (lane == 0) partial[warp] = value;\n',
    compile: ['cuda/rms_norm.cu'],
    tests: 'norm_rope',
    seen: /^FAIL rms_norm/m,
  },
  {
    what: 'the barrier before partial sums are used again',
    file: 'cuda/reduce.h',
    from: '  __syncthreads();  // the sums of an earlier call have been read\n',
    to: '',
    compile: ['cuda/rms_norm.cu'],
    tests: 'norm_rope',
    seen: /^FAIL rms_norm/m,
  },
  {
    what: 'the bounds of a store',
    file: 'cuda/vec.h',
    from: '    if (i < count) to[i] = narrow<T>(values[i]);',
    to: '    to[i] = narrow<T>(values[i]);',
    compile: ['cuda/elementwise.cu'],
    tests: 'elementwise',
    seen: /AddressSanitizer: \S*-overflow/,
  },
  {
    what: 'the bounds of a load',
    file: 'cuda/vec.h',
    from: 'out[i] = i < count ? widen(from[i]) : 0.0f;',
    to: 'out[i] = widen(from[i]);',
    compile: ['cuda/elementwise.cu'],
    tests: 'elementwise',
    seen: /AddressSanitizer: \S*-overflow/,
  },
  {
    what: 'the check of alignment',
    file: 'cuda/vec.h',
    from: 'reinterpret_cast<uintptr_t>(data) % 16 == 0',
    to: 'reinterpret_cast<uintptr_t>(data) != 1',
    compile: ['cuda/elementwise.cu'],
    tests: 'elementwise',
    seen: /misaligned/,
  },
  {
    what: 'the wait for an event of another stream',
    file: 'cuda/stream.cc',
    from: '  check(cudaStreamWaitEvent(handle_, recorded.get(), 0), "waiting for an event");\n',
    to: '',
    compile: ['cuda/stream.cc'],
    tests: 'streams',
    seen: /^FAIL a stream waits for an event of another/m,
  },
  {
    what: 'the wait for a CPU stream',
    file: 'cuda/stream.cc',
    from: '    order_behind_host(event);\n',
    to: '',
    compile: ['cuda/stream.cc'],
    tests: 'streams',
    seen: /^FAIL copies|^timed out/m,
  },
  {
    what: 'the wait of a CPU stream for a copy from the device',
    file: 'cuda/backend.cc',
    from: '    host.wait(queue.record());\n',
    to: '',
    compile: ['cuda/backend.cc'],
    tests: 'streams',
    seen: /^FAIL copies/m,
  },
  {
    what: 'the wait before memory is used again',
    file: 'core/allocator.cc',
    from: '    home->wait_for_reuse(event);\n',
    to: '    (void)event;\n',
    compile: ['core/allocator.cc'],
    tests: 'streams',
    seen: /^FAIL memory is reused/m,
  },
];

const groupCalls: (Mutation & { seen: RegExp })[] = [
  {
    what: 'the beginning of a group of NCCL calls',
    file: 'comm/nccl_collectives.cc',
    from: 'int result = api.GroupStart();',
    to: 'int result = 0;',
    compile: ['comm/nccl_collectives.cc'],
    seen: /\[scatter\] #\d+ of group world on rank 1: invalid usage/,
  },
  {
    what: 'the end of a group of NCCL calls',
    file: 'comm/nccl_collectives.cc',
    from: 'int ended = api.GroupEnd();',
    to: 'int ended = 0;',
    compile: ['comm/nccl_collectives.cc'],
    seen: /^rank \d failed: .*got 0,0, wanted|ERR_TIMEOUT/m,
  },
];

describe.skipIf(!available)('a program without', () => {
  beforeAll(buildEmulated, 600_000);

  it.each(mutations)('$what fails', async (mutation) => {
    const folder = mkdtempSync(join(tmpdir(), 'rankzero-mutant-'));
    try {
      const program = buildMutant(mutation, folder);
      let text = '';
      // A few orders: the one in which nothing happens to go wrong proves nothing.
      for (const seed of seeds) {
        const { stdout, stderr, code } = await run(program, ['--cuda', mutation.tests], environment(seed), 60_000);
        text += stdout + stderr;
        if (code !== 0) break;
      }
      expect(text).toMatch(mutation.seen);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });

  it.each(groupCalls)('$what fails on two ranks', async (mutation) => {
    const folder = mkdtempSync(join(tmpdir(), 'rankzero-mutant-'));
    try {
      const { code, stdout, stderr } = await runNode([launcher, 'run', '--nproc', '2', collectives, 'all'], 1, {
        RANKZERO_ADDON: buildMutant(mutation, folder, 'addon'),
        RANKZERO_TIMEOUT: '5',
      });
      expect(stdout + stderr).toMatch(mutation.seen);
      expect(code).not.toBe(0);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });
});
