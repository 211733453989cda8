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
    from: '    order_behind_host(event, op);\n',
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
  {
    what: 'the wait for the host before a kernel is loaded',
    file: 'cuda/context.cc',
    from: 'if (loaded_.insert(kernel).second) await_host();',
    to: 'loaded_.insert(kernel);',
    compile: ['cuda/context.cc'],
    tests: 'streams',
    seen: /emulator: loading a kernel may wait for the device with locks held, and there a cuStreamWaitValue64 waits for the host/,
  },
  {
    what: 'the events of pages that are mapped anew',
    file: 'core/allocator.cc',
    from: 'merge_events(pending, block.pending);',
    to: '(void)block;',
    compile: ['core/allocator.cc'],
    tests: 'streams',
    seen: /^FAIL and earlier work on them comes first/m,
  },
  {
    what: 'the wait for a tile that is copied to shared memory',
    file: 'cuda/attention_forward_hopper.cu',
    from: '        if (n + 1 < tiles) key_ring.wait_full(n + 1);\n',
    to: '',
    compile: ['cuda/attention_forward_hopper.cu'],
    tests: 'attention',
    seen: /^FAIL attention, aligned|threads wait for others/m,
  },
  {
    what: 'the wait for a stage of shared memory to be free',
    file: 'cuda/attention_forward_hopper.cu',
    from: '        value_ring.wait_empty(n, limit);\n',
    to: '',
    compile: ['cuda/attention_forward_hopper.cu'],
    tests: 'attention',
    seen: /^FAIL attention, aligned|more threads arrive|threads wait for others/m,
  },
  {
    what: 'the meeting of lanes before one of them releases a tile',
    file: 'cuda/attention_hopper.h',
    from: '    __syncwarp();\n    if (threadIdx.x % kWarp == 0) barrier_arrive(empty(n));',
    to: '    if (threadIdx.x % kWarp == 0) barrier_arrive(empty(n));',
    compile: ['cuda/attention_backward_hopper.cu'],
    tests: 'attention',
    seen: /^FAIL attention, aligned|threads wait for others/m,
  },
  {
    what: 'bytes that a barrier should expect',
    file: 'cuda/attention_forward_hopper.cu',
    from: 'barrier_expect(value_ring.full(n), Keys::kBytes);',
    to: 'barrier_expect(value_ring.full(n), Keys::kBytes + 16);',
    compile: ['cuda/attention_forward_hopper.cu'],
    tests: 'attention',
    seen: /threads wait for others that will never come: thread \d+ for a barrier in shared memory/,
  },
  {
    what: 'the wait for a product of a warpgroup',
    file: 'cuda/attention_forward_hopper.cu',
    from: '        wgmma_wait<1>(s[0]);\n',
    to: '',
    compile: ['cuda/attention_forward_hopper.cu'],
    tests: 'attention',
    seen: /does not name a result|were written while a product was under way/,
  },
  {
    what: 'the fence between registers and products of a warpgroup',
    file: 'cuda/attention_backward_hopper.cu',
    from: '        wgmma_fence();\n        hopper_accumulate<T>(dq, left, k);',
    to: '        hopper_accumulate<T>(dq, left, k);',
    compile: ['cuda/attention_backward_hopper.cu'],
    tests: 'attention',
    seen: /wgmma without wgmma_fence/,
  },
  {
    what: 'the fence between what threads write to shared memory and products',
    file: 'cuda/attention_hopper.h',
    from: '  shared_written();\n',
    to: '',
    compile: ['cuda/attention_forward_hopper.cu'],
    tests: 'attention',
    seen: /without shared_written/,
  },
  {
    what: 'the turn of a consumer to multiply',
    file: 'cuda/attention_forward_hopper.cu',
    from: 'arrive_of(kTurns + consumer + 1, 2 * kWarpgroup);',
    to: 'return;',
    compile: ['cuda/attention_forward_hopper.cu'],
    tests: 'attention',
    seen: /threads wait for others that will never come: .*in a barrier of some threads/,
  },
  {
    what: 'what keeps numbers of other sequences out of products',
    file: 'cuda/attention_forward_hopper.cu',
    from: '      clear_behind(consumer, span.keys - j_begin - (tiles - 1) * kKeys, values(tiles - 1));\n',
    to: '',
    compile: ['cuda/attention_forward_hopper.cu'],
    tests: 'attention',
    seen: /^FAIL attention, aligned/m,
  },
  {
    what: 'the stride of a tile in shared memory',
    file: 'cuda/attention_hopper.h',
    from: 'kStride = 8 * kRow;',
    to: 'kStride = 4 * kRow;',
    compile: ['cuda/attention_forward_hopper.cu'],
    tests: 'attention',
    seen: /^FAIL attention, aligned/m,
  },
  {
    what: 'what keeps queries of other sequences out of products',
    file: 'cuda/attention_backward_hopper.cu',
    from: '        clear_behind(consumer, span.queries - i, q, d_o);\n',
    to: '',
    compile: ['cuda/attention_backward_hopper.cu'],
    tests: 'attention',
    seen: /^FAIL attention, aligned/m,
  },
];

const groupCalls: (Mutation & { seen: RegExp })[] = [
  {
    what: 'the beginning of a group of NCCL calls',
    file: 'comm/nccl_api.h',
    from: 'int result = api.GroupStart();',
    to: 'int result = 0;',
    compile: ['comm/nccl_collectives.cc'],
    // Which of the two ranks says so first is open.
    seen: /\[(scatter|all_to_all)\] #\d+ of group world on rank \d: invalid usage/,
  },
  {
    what: 'the end of a group of NCCL calls',
    file: 'comm/nccl_api.h',
    from: 'int ended = api.GroupEnd();',
    to: 'int ended = 0;',
    compile: ['comm/nccl_collectives.cc'],
    seen: /^rank \d failed: (.*got 0,0, wanted|all_to_all )|ERR_TIMEOUT/m,
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
        // A trial of the kernels for Hopper would leave wrong ones aside.
        const env = environment(seed, { RANKZERO_ATTENTION: 'hopper' });
        const { stdout, stderr, code } = await run(program, ['--cuda', mutation.tests], env, 60_000);
        text += stdout + stderr;
        if (code !== 0) break;
      }
      expect(text).toMatch(mutation.seen);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });

  it('a right stride of a tile leaves the kernels for Hopper aside, and says so', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'rankzero-mutant-'));
    try {
      const program = buildMutant(mutations.find(({ what }) => what.startsWith('the stride of a tile'))!, folder);
      const { stdout, stderr, code } = await run(program, ['--cuda', 'attention'], environment(1));
      expect(stdout).toMatch(/^ok \d+ checks, device cuda/m);
      expect(stderr).toMatch(
        /^rankzero: attention for Hopper \(head size 64\) differs by [\d.]+ from the kernels for all/m,
      );
      expect(code).toBe(0);
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
