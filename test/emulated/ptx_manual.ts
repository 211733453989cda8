// The instructions of cpp/cuda/mma.h and cpp/cuda/hopper.h with their operands, written down from the forms of NVIDIA's manual,
// "Parallel Thread Execution ISA", version 9.0, not from the sources. The sections are named as its table of contents names them
// (their numbers change with versions). How ptx.ts writes operands: `{32 f32}` is a vector of so many registers, `[b32]` an address
// in a register of 32 bits, which those of shared memory have.

/** One section: what it says of operands, and what must be found in the PTX. */
export interface Section {
  section: string;
  says: string;
  forms: string[];
}

const halves = ['bf16', 'f16'];

/** A row of the matrix D has N values; a warpgroup holds its 64 rows in 128 threads: N / 2 registers of each. */
const warpgroupProducts = halves.flatMap((type) =>
  [64, 96, 128].flatMap((n) => {
    const opcode = `wgmma.mma_async.sync.aligned.m64n${n}k16.f32.${type}.${type} {${n / 2} f32}`;
    return [0, 1].flatMap((transposed) => [
      `${opcode}, b64, b64, pred, 1, 1, 0, ${transposed}`,
      `${opcode}, {4 b32}, b64, pred, 1, 1, ${transposed}`,
    ]);
  }),
);

export const sections: Section[] = [
  {
    section: 'Asynchronous Warpgroup Level Matrix Instructions: wgmma.mma_async',
    says:
      '.sync.aligned.shape.dtype.bf16.bf16 d, a-desc, b-desc, scale-d, imm-scale-a, imm-scale-b, imm-trans-a, imm-trans-b; with a in ' +
      'registers: d, a, b-desc, scale-d, imm-scale-a, imm-scale-b, imm-trans-b. shape: m64nNk16, N a multiple of 8 up to 256; ' +
      'scale-d a predicate, scales -1 or 1, transpositions 0 or 1; a: four .b32 registers (Register Fragments, m64nNk16)',
    forms: warpgroupProducts,
  },
  {
    section: 'Asynchronous Warpgroup Level Matrix Instructions: wgmma.fence, wgmma.commit_group, wgmma.wait_group',
    says: 'wgmma.fence.sync.aligned; wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned N, an integer constant',
    forms: ['wgmma.fence.sync.aligned', 'wgmma.commit_group.sync.aligned', 'wgmma.wait_group.sync.aligned 1'],
  },
  {
    section: 'Miscellaneous Instructions: setmaxnreg',
    says: 'setmaxnreg.action.sync.aligned.u32 imm-reg-count: .inc or .dec, 24 to 256, a multiple of 8',
    forms: ['setmaxnreg.dec.sync.aligned.u32 24', 'setmaxnreg.inc.sync.aligned.u32 240'],
  },
  {
    section: 'Miscellaneous Instructions: trap',
    says: 'trap; aborts execution and raises an interrupt at the host',
    forms: ['trap'],
  },
  {
    section: 'Data Movement and Conversion Instructions: cp.async.bulk.tensor',
    says:
      '.dim.dst.src.completion_mechanism [dstMem], [tensorMap, tensorCoords], [mbar]: dim .1d to .5d with as many .s32 ' +
      'coordinates; dst .shared::cluster; src .global; .mbarrier::complete_tx::bytes; tensorMap a generic address',
    forms: ['cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [b32], [b64, {3 b32}], [b32]'],
  },
  {
    section: 'Parallel Synchronization and Communication Instructions: mbarrier.init',
    says: 'mbarrier.init{.shared{::cta}}.b64 [addr], count: count .u32',
    forms: ['mbarrier.init.shared::cta.b64 [b32], b32'],
  },
  {
    section: 'Parallel Synchronization and Communication Instructions: mbarrier.arrive',
    says:
      'mbarrier.arrive{.shared{::cta}}.b64 state, [addr]{, count}; mbarrier.arrive.expect_tx{.shared{::cta}}.b64 state, [addr], ' +
      'tx-count: .u32; the sink _ may stand for state',
    forms: ['mbarrier.arrive.shared::cta.b64 _, [b32]', 'mbarrier.arrive.expect_tx.shared::cta.b64 _, [b32], b32'],
  },
  {
    section: 'Parallel Synchronization and Communication Instructions: mbarrier.test_wait, mbarrier.try_wait',
    says: 'mbarrier.try_wait.parity{.shared{::cta}}.b64 waitComplete, [addr], phaseParity: a predicate; .u32, 0 or 1',
    forms: ['mbarrier.try_wait.parity.shared::cta.b64 pred, [b32], b32'],
  },
  {
    section: 'Parallel Synchronization and Communication Instructions: membar, fence',
    says: 'fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta',
    forms: ['fence.mbarrier_init.release.cluster', 'fence.proxy.async.shared::cta'],
  },
  {
    section: 'Parallel Synchronization and Communication Instructions: bar, barrier',
    says: 'bar.sync a, b; bar.arrive a, b: number of the barrier and of the threads, a multiple of the warp size',
    forms: ['bar.sync b32, b32', 'bar.arrive b32, b32'],
  },
  {
    section: 'Data Movement and Conversion Instructions: st',
    says: 'st.shared.v4.b32 [a], b: a vector of four',
    forms: ['st.shared.v4.b32 [b32], {4 b32 alike}'],
  },
  {
    section: 'Warp Level Matrix Instructions: mma',
    says:
      'mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 d, a, b, c: a four .b32 registers, b two, c and d four .f32 (Matrix ' +
      'Fragments for mma.m16n8k16 with floating point type)',
    forms: halves.map(
      (type) => `mma.sync.aligned.m16n8k16.row.col.f32.${type}.${type}.f32 {4 f32}, {4 b32}, {2 b32}, {4 f32}`,
    ),
  },
  {
    section: 'Warp Level Matrix Instructions: ldmatrix',
    says: 'ldmatrix.sync.aligned.m8n8.num{.trans}{.shared}.b16 r, [p]: .x1, .x2, .x4 with as many .b32 registers',
    forms: [2, 4].flatMap((count) =>
      ['', '.trans'].map((trans) => `ldmatrix.sync.aligned.m8n8.x${count}${trans}.shared.b16 {${count} b32}, [b32]`),
    ),
  },
  {
    section: 'Data Movement and Conversion Instructions: cp.async, cp.async.commit_group, cp.async.wait_group',
    says:
      'cp.async.ca.shared.global [dst], [src], cp-size{, src-size}: 4, 8 or 16; cp.async.cg: 16; src-size .u32: the rest becomes ' +
      'zeros; cp.async.commit_group; cp.async.wait_group N, an integer constant',
    forms: [
      'cp.async.cg.shared.global [b32], [b64], 16, b32',
      'cp.async.ca.shared.global [b32], [b64], 4, b32',
      'cp.async.commit_group',
      'cp.async.wait_group 1',
    ],
  },
  {
    section: 'Data Movement and Conversion Instructions: cvt',
    says: 'cvt.rn.f16x2.f32 d, a, b; cvt.rn.bf16x2.f32 d, a, b: d .b32, a in its upper half',
    forms: halves.map((type) => `cvt.rn.${type}x2.f32 b32, f32, f32`),
  },
  {
    section: 'Floating-Point Instructions: ex2',
    says: 'ex2.approx{.ftz}.f32 d, a',
    forms: ['ex2.approx.ftz.f32 f32, f32'],
  },
  {
    section: 'Special Registers: %globaltimer; Comparison and Selection Instructions: setp, selp',
    says: 'mov.u64 d, %globaltimer; setp.ne.b32 p, a, b; selp.b32 d, a, b, c: c a predicate',
    forms: ['mov.u64 b64, %globaltimer', 'setp.ne.b32 pred, b32, 0', 'selp.b32 b32, 1, 0, pred'],
  },
];
