// What the emulator cannot show: whether the kernels fit the device that they are compiled for, and are made of the instructions
// that they are written for.
import { beforeAll, describe, expect, it } from 'vitest';
import {
  available,
  buildDevice,
  type CompiledKernel,
  compiledKernels,
  compileThroughLauncher,
  intermediate,
  knownKernels,
  type Launch,
  launcherOfBuild,
  launches,
} from './compiled.ts';

/** Kernels that may use a stack, which is memory and slow, and why. Every other one is hot. */
const mayUseStack: Record<string, string> = {
  rope_table: 'the reduction of an angle beyond what a multiply-add is good for; one small table a batch',
};

const half = '(?:bf16|f16)';
/** Kernels for memory's sake: at least so many loads and stores of 16 bytes, one for each group of each operand. */
const wide: [pattern: string, loads: number, stores: number][] = [
  [`rms_norm_forward<${half}>`, 4, 2],
  ['rms_norm_forward<float>', 8, 4],
  [`rms_norm_backward<${half}, (?:true|false)>`, 6, 2],
  ['rms_norm_backward<float, (?:true|false)>', 12, 4],
  ['rms_norm_sums<.*>', 2, 2],
  [`layer_norm_forward<${half}>`, 6, 2],
  ['layer_norm_forward<float>', 12, 4],
  [`layer_norm_backward<${half}, (?:true|false)>`, 6, 2],
  ['layer_norm_backward<float, (?:true|false)>', 12, 4],
  ['layer_norm_sums<.*>', 2, 4],
  [`rope<${half}>`, 7, 3],
  ['rope<float>', 10, 6],
  [`turn_parts<${half}, .*>`, 8, 4],
  ['turn_parts<float, .*>', 12, 8],
  [`each_group<SwigluForwardMap<${half}>>`, 2, 1],
  ['each_group<SwigluForwardMap<float>>', 4, 2],
  [`each_group<SwigluBackwardMap<${half}>>`, 3, 2],
  ['each_group<SwigluBackwardMap<float>>', 6, 4],
  [`each_row_group<PackedSwigluForwardMap<${half}>>`, 2, 1],
  ['each_row_group<PackedSwigluForwardMap<float>>', 4, 2],
  [`each_row_group<PackedSwigluBackwardMap<${half}>>`, 3, 2],
  ['each_row_group<PackedSwigluBackwardMap<float>>', 6, 4],
  [`each_group<GeluForwardMap<${half}, .*>>`, 1, 1],
  ['each_group<GeluForwardMap<float, .*>>', 2, 2],
  [`each_group<GeluBackwardMap<${half}, .*>>`, 2, 1],
  ['each_group<GeluBackwardMap<float, .*>>', 4, 2],
  [`each_group<CastMap<${half}, .*>>`, 1, 1],
  [`each_group<CastMap<float, ${half}>>`, 1, 2],
  ['each_group<AddMap<.*>>', 2, 1],
  ['each_group<ScaleMap<.*>>', 2, 1],
  ['each_group<FillMap<(?!unsigned char).*>>', 0, 1],
  ['cast_rows<.*>', 1, 1],
  ['adamw<.*>', 6, 6],
  ['sgd<.*>', 4, 4],
  ['square_parts<.*>', 1, 0],
  ['embedding_forward<Bytes16>', 1, 1],
  ['embedding_backward<.*>', 4, 1],
  ['move_parts<Bytes16, .*>', 1, 1],
  [`cross_entropy_rows<${half}, float, true>`, 4, 1],
  [`cross_entropy_rows<${half}, ${half}, true>`, 2, 1],
  ['cross_entropy_rows<float, float, true>', 4, 2],
  ['vocab_stats<true>', 2, 0],
  ['vocab_cross_entropy_rows<.*, true>', 2, 1],
  ['delta_of_rows<.*>', 2, 0],
  ['add_pairs<.*>', 2, 1],
  ['weighted_swiglu_backward<.*>', 4, 3],
];

/** Kernels for arithmetic's sake, in 16 bits: tensor cores, fed by loads of matrices, and asynchronous copies where they have some. */
const tensorCores: [pattern: string, asynchronous: boolean][] = [
  [`attention_forward<${half}, .*>`, true],
  [`attention_backward_queries<${half}, .*>`, true],
  [`attention_backward_keys<${half}, .*>`, true],
  [`multiply_groups<${half}, .*>`, false],
  [`multiply_over_groups<${half}, .*>`, false],
];

/** The same on Hopper: products of warpgroups, tiles by the copy engine, registers given from one warpgroup to others, and a trap for waits that do not end. */
const warpgroups: [pattern: string, products: number][] = [
  [`attention_forward_hopper<${half}, 64, .*>`, 24],
  [`attention_forward_hopper<${half}, 96, .*>`, 28],
  [`attention_forward_hopper<${half}, 128, .*>`, 32],
  [`attention_backward_keys_hopper<${half}, 64, .*>`, 16],
  [`attention_backward_keys_hopper<${half}, 96, .*>`, 20],
  [`attention_backward_keys_hopper<${half}, 128, .*>`, 24],
  [`attention_backward_queries_hopper<${half}, 64, .*>`, 16],
  [`attention_backward_queries_hopper<${half}, 96, .*>`, 20],
  [`attention_backward_queries_hopper<${half}, 128, .*>`, 24],
];

// Of a block, on every architecture since sm_80.
const mostThreads = 1024;
const mostRegisters = 65536;
const mostShared = 99 << 10; // what sm_86, sm_89 and sm_120 have; sm_80 and sm_90 have more
const mostSharedOfHopper = 227 << 10;
const reservedShared = 1 << 10; // of it, counted by the compiler where a kernel uses any
const mostBlocks: readonly number[] = [2 ** 31 - 1, 65535, 65535];

/** Registers that a block takes: they are given out by eight to a thread, and to four warps at once. */
function registersOf(registers: number, threads: number): number {
  const warps = Math.ceil(threads / 32 / 4) * 4;
  return Math.ceil(registers / 8) * 8 * 32 * warps;
}

const product = (numbers: readonly number[]): number => numbers.reduce((a, b) => a * b, 1);

describe.skipIf(!available)(`device code${available ? '' : ' (skipped: nvcc was not found)'}`, () => {
  let folder: string;
  let kernels: CompiledKernel[];
  let launched: Launch[];
  const matching = (pattern: string) => kernels.filter(({ title }) => new RegExp(`^${pattern}$`).test(title));

  beforeAll(() => {
    folder = buildDevice();
    kernels = compiledKernels(folder);
    launched = launches(folder);
  }, 1_200_000);

  it('is read right: kernels whose instructions are known', () => {
    const known = knownKernels();
    const counts = (name: string) =>
      Object.fromEntries(Object.entries(known.get(name)!.count).filter(([, count]) => count > 0));
    expect(counts('narrow_moves')).toEqual({ ldg: 1, stg: 1 });
    expect(counts('wide_load')).toEqual({ ldg: 1, ldg128: 1, stg: 1 });
    expect(counts('wide_store')).toEqual({ ldg: 1, stg: 1, stg128: 1 });
    expect(counts('shared_moves')).toEqual({ ldg: 1, sts: 1, lds: 1, stg: 1 });
    expect(counts('tensor_cores')).toMatchObject({ ldgsts: 1, ldsm: 1, hmma: 1, stg: 1 });
    expect(known.get('shared_moves')!.shared).toBe(reservedShared + 1024);
    expect(known.get('stack_array')!.stack).toBe(256);
    expect(known.get('stack_array')!.count.ldl).toBeGreaterThan(0);
    const { warpgroup, ...others } = known.get('warpgroup')!.count;
    expect(others).toMatchObject({ hgmma: 2, utmaldg: 1, setmaxnreg: 1 });
    expect([3, 4]).toContain(warpgroup); // two are in the source; the compiler adds one, that of CUDA 12.4 two
    expect(counts('trapping')).toEqual({ ldg: 1, stg: 1, trap: 1 });
    const spilling = known.get('spilling')!;
    expect(spilling).toMatchObject({ registers: 64, bound: 1024 });
    expect(spilling.stack).toBeGreaterThanOrEqual(32 * 4);
    expect(spilling.count.stl).toBeGreaterThan(0);
    expect(spilling.count.ldl).toBeGreaterThan(0);
  });

  it('holds more than 250 kernels', () => expect(kernels.length).toBeGreaterThan(250));

  it('keeps to registers, but for kernels that are listed', () => {
    const onStack = kernels.filter(({ stack, count }) => stack > 0 || count.ldl > 0 || count.stl > 0);
    expect(onStack.map(({ title }) => title).sort()).toEqual(Object.keys(mayUseStack).sort());
  });

  it.each(wide)('moves 16 bytes at once: %s', (pattern, loads, stores) => {
    const found = matching(pattern);
    expect(found).not.toEqual([]);
    const narrow = found.filter(({ count }) => count.ldg128 < loads || count.stg128 < stores);
    expect(narrow).toEqual([]);
  });

  it.each(tensorCores)('multiplies on tensor cores: %s', (pattern, asynchronous) => {
    const found = matching(pattern);
    expect(found).not.toEqual([]);
    const other = found.filter(
      ({ count }) => count.hmma < 32 || count.ldsm === 0 || (asynchronous && count.ldgsts === 0),
    );
    expect(other).toEqual([]);
  });

  it('fails to compile where products are put one after the other', () => {
    const { status, stderr, made } = compileThroughLauncher('serialised.cu');
    expect(stderr).toMatch(/Potential Performance Loss: wgmma.*\n.*fails the build/s);
    expect({ status, made }).toEqual({ status: 1, made: false });
    expect(compileThroughLauncher('plain.cu')).toMatchObject({ status: 0, made: true });
    expect(launcherOfBuild(folder)).toContain('cmake/nvcc.sh');
  });

  // A compiler that runs out of registers waits after each product.
  it.each(warpgroups)('multiplies on warpgroups, products under way together: %s', (pattern, products) => {
    const found = matching(pattern);
    expect(found.length).toBe(2);
    const other = found.filter(
      ({ count }) =>
        count.hgmma !== products ||
        count.utmaldg === 0 ||
        count.setmaxnreg !== 2 ||
        count.trap === 0 ||
        count.warpgroup > products / 2,
    );
    expect(other).toEqual([]);
  });

  // A product and a sum without a rounding of its own may become one instruction, whose bits are not the CPU's.
  it('draws random numbers in the arithmetic of the CPU', () => {
    const arithmetic = intermediate(folder, 'random.cu')
      .match(/^\s*(?:\w+)\.\S*f32\b/gm)!
      .map((text) => text.trim());
    const rounded = /^(?:add|sub|mul|sqrt|cvt)\.rn\.|^cvt\.rn|^(?:ld|st|mov|selp|neg|xor|setp)\./;
    expect(arithmetic.length).toBeGreaterThan(50);
    expect([...new Set(arithmetic.filter((text) => !rounded.test(text)))]).toEqual([]);
    const contracted = intermediate(folder, 'rms_norm.cu');
    expect(contracted).toMatch(/^\s*fma\.rn\.f32/m);
  });

  it('is launched whole by the sizes in launches/main.cc', () => {
    const names = new Set(launched.map(({ kernel }) => kernel));
    const missing = kernels.filter(({ name }) => !names.has(name)).map(({ title }) => title);
    expect(missing).toEqual([]);
  });

  it('fits the device, block by block and grid by grid, also at the largest sizes', () => {
    const named = new Map(kernels.map((kernel) => [kernel.name, kernel]));
    const problems = launched.flatMap(({ kernel: name, grid, block, shared, allowed }) => {
      const kernel = named.get(name)!;
      const threads = product(block);
      const most = kernel.title.includes('_hopper') ? mostSharedOfHopper : mostShared;
      const wrong = [
        threads > (kernel.bound ?? mostThreads) && `${threads} threads`,
        registersOf(kernel.registers, threads) > mostRegisters && `${kernel.registers} registers of ${threads} threads`,
        shared + kernel.shared > most + reservedShared && `${shared} + ${kernel.shared} bytes of shared memory`,
        shared > allowed && `${shared} bytes of shared memory, ${allowed} allowed`,
        grid.some((blocks, axis) => blocks > mostBlocks[axis]!) && `a grid of ${grid}`,
      ];
      return wrong.filter(Boolean).map((what) => `${kernel.title}: ${what}`);
    });
    expect(problems).toEqual([]);
  });
});
