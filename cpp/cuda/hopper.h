// What sm_90a has beyond mma.h: copies of tensors by an engine of their own, barriers in shared memory that count threads and
// bytes, and products of a warpgroup (four warps, the first a multiple of four) whose right operand lies in shared memory. The
// instructions, no more. Kernels of other architectures trap: a launcher asks has_hopper() first. The emulator has a header of
// the same name.
#pragma once
#include <string_view>
#include <type_traits>

#include "core/dtype.h"
#include "cuda/device.h"
#include "cuda/driver.h"
#include "cuda/mma.h"
#include "cuda/tensor_map.h"

#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define RZ_HOPPER(...) __trap()
#else
#define RZ_HOPPER(...) asm volatile(__VA_ARGS__)
#endif

namespace rz::cuda {

// Whether this device has these instructions, kernels were compiled with them, and the driver describes tensors.
inline bool has_hopper(const cudaDeviceProp& device) {
  static const bool prepared = std::string_view(RANKZERO_CUDA_ARCHITECTURES).find("90a") != std::string_view::npos && driver().cuTensorMapEncodeTiled;
  return prepared && device.major == 9 && device.minor == 0;
}

constexpr int kWarpgroup = 128;
// Known to the compiler to be the same in a warp.
__device__ __forceinline__ int own_warpgroup() { return __shfl_sync(kFullMask, static_cast<int>(threadIdx.x) / kWarpgroup, 0); }

// Dynamic shared memory for tiles whose places depend on their address.
__device__ __forceinline__ unsigned char* swizzled_shared() {
  extern __shared__ __align__(1024) unsigned char rz_swizzled_shared[];
  return rz_swizzled_shared;
}

// ---- barriers ----
// Eight bytes of shared memory. A phase ends when `count` arrivals and all bytes that were expected have come; the next one
// begins at once. Phases are known by their parity, the first is 0.

__device__ __forceinline__ void barrier_init(SharedAddress barrier, int count) {
  RZ_HOPPER("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
// By the thread that initialised them, before others pass the next __syncthreads().
__device__ __forceinline__ void barriers_initialised() {
  RZ_HOPPER("fence.mbarrier_init.release.cluster;" ::: "memory");
  RZ_HOPPER("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(SharedAddress barrier) {
  RZ_HOPPER("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives, and says how many bytes copies will bring in this phase.
__device__ __forceinline__ void barrier_expect(SharedAddress barrier, int bytes) {
  RZ_HOPPER("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ bool barrier_passed(SharedAddress barrier, int parity) {
  int passed = 0;
  RZ_HOPPER(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.b32 %0, 1, 0, p;\n"
      "}"
      : "=r"(passed)
      : "r"(barrier), "r"(parity)
      : "memory");
  return passed != 0;
}
// Until the phase of this parity has ended. What was written before arrivals, and what copies brought, is there then.
__device__ __forceinline__ void barrier_wait(SharedAddress barrier, int parity) {
  while (!barrier_passed(barrier, parity)) {}
}
// The same for a producer: a phase that does not end within `limit` ns is a defect, and becomes an error of the launch. Not for
// who multiplies: with a trap on its way the compiler keeps fewer registers for products, and puts them one after the other.
__device__ __forceinline__ void barrier_watch(SharedAddress barrier, int parity, uint64_t limit) {
  if (barrier_passed(barrier, parity)) return;
  const auto now = [] {
    uint64_t ns = 0;
    RZ_HOPPER("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return ns;
  };
  const uint64_t begin = now();
  while (!barrier_passed(barrier, parity))
    if (now() - begin > limit) RZ_HOPPER("trap;");
}

// Writes 16 bytes of zeros. What threads write to shared memory is seen by copies and products of others after
// shared_written(), by each thread that wrote, and then a barrier.
__device__ __forceinline__ void store_zeros(SharedAddress to) { RZ_HOPPER("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(to), "r"(0) : "memory"); }
__device__ __forceinline__ void shared_written() { RZ_HOPPER("fence.proxy.async.shared::cta;" ::: "memory"); }

// A barrier of the threads that call it with the same number (1 to 15), `threads` of them, whole warps.
__device__ __forceinline__ void sync_threads_of(int number, int threads) {
  RZ_HOPPER("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}
// The same for those that do not wait.
__device__ __forceinline__ void arrive_of(int number, int threads) {
  RZ_HOPPER("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// ---- copies ----

// Begins to copy the box at (column, head, row) to a multiple of 128 bytes (1024, where places depend on it); it arrives as
// bytes at the barrier.
__device__ __forceinline__ void copy_box(SharedAddress to, const TensorMap& map, SharedAddress barrier, int column, int head, int row) {
  RZ_HOPPER("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to),
            "l"(&map), "r"(barrier), "r"(column), "r"(head), "r"(row)
            : "memory");
}

// ---- products ----
// d (64, N) += a (64, 16) b (16, N), by a warpgroup together. d is laid out as the accumulators of mma.h, warp w having rows
// 16 w and on; a, where it is in registers, as the left operand there. Operands in shared memory are given by descriptors:
//   bits 0-13 address, 16-29 leading offset, 32-45 stride, all divided by 16; 62-63 swizzle: 1 of 128 bytes, 2 of 64
// Registers of d may be neither read nor written before wgmma_wait(), nor those of a written, nor shared memory.

// Before the first product, and after other instructions wrote registers of one.
__device__ __forceinline__ void wgmma_fence() { RZ_HOPPER("wgmma.fence.sync.aligned;" ::: "memory"); }
// Ends a group of products.
__device__ __forceinline__ void wgmma_commit() { RZ_HOPPER("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// The compiler may not move what it does with these registers across.
template <int N>
__device__ __forceinline__ void settle(float (&d)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(d[n][e])::"memory");
}
// Until at most kPending groups are under way; `d`: all results of those that were waited for.
template <int kPending, int... N>
__device__ __forceinline__ void wgmma_wait(float (&... d)[N][4]) {
  RZ_HOPPER("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  (settle(d), ...);
}

#define RZ_D(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define RZ_D8 RZ_D(0), RZ_D(1), RZ_D(2), RZ_D(3), RZ_D(4), RZ_D(5), RZ_D(6), RZ_D(7)
#define RZ_D12 RZ_D8, RZ_D(8), RZ_D(9), RZ_D(10), RZ_D(11)
#define RZ_D16 RZ_D12, RZ_D(12), RZ_D(13), RZ_D(14), RZ_D(15)
#define RZ_TO_32 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define RZ_TO_48 RZ_TO_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define RZ_TO_64 RZ_TO_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// `first`: the number of the first operand behind d.
#define RZ_WGMMA(type, columns, list, left, right, add, transposed)                                          \
  "{\n"                                                                                                      \
  ".reg .pred p;\n"                                                                                          \
  "setp.ne.b32 p, " add ", 0;\n"                                                                             \
  "wgmma.mma_async.sync.aligned.m64n" columns "k16.f32." type "." type " {" list "}, " left ", " right ", p, 1, 1, " transposed ";\n" \
  "}"
#define RZ_WGMMA_SHARED(type, columns, list, outputs, p0, p1, p2, p3) \
  RZ_HOPPER(RZ_WGMMA(type, columns, list, p0, p1, p2, "0, " p3) : outputs : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(kTransposed))
#define RZ_WGMMA_REGISTERS(type, columns, list, outputs, p0, p1, p2, p3, p4, p5, p6)                  \
  RZ_HOPPER(RZ_WGMMA(type, columns, list, "{" p0 ", " p1 ", " p2 ", " p3 "}", p4, p5, p6) : outputs \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)), "n"(kTransposed))

// kTransposed: rows of b (16, N) lie in memory as rows; else its columns do. `add`: false: d = a b.
template <class T, bool kTransposed, int N>
__device__ __forceinline__ void wgmma(float (&d)[N][4], uint64_t a, uint64_t b, bool add) {
  static_assert(N == 8 || N == 12 || N == 16);
  constexpr bool kBf16 = std::is_same_v<T, bf16>;
  if constexpr (N == 8 && kBf16) RZ_WGMMA_SHARED("bf16", "64", RZ_TO_32, RZ_D8, "%32", "%33", "%34", "%35");
  if constexpr (N == 8 && !kBf16) RZ_WGMMA_SHARED("f16", "64", RZ_TO_32, RZ_D8, "%32", "%33", "%34", "%35");
  if constexpr (N == 12 && kBf16) RZ_WGMMA_SHARED("bf16", "96", RZ_TO_48, RZ_D12, "%48", "%49", "%50", "%51");
  if constexpr (N == 12 && !kBf16) RZ_WGMMA_SHARED("f16", "96", RZ_TO_48, RZ_D12, "%48", "%49", "%50", "%51");
  if constexpr (N == 16 && kBf16) RZ_WGMMA_SHARED("bf16", "128", RZ_TO_64, RZ_D16, "%64", "%65", "%66", "%67");
  if constexpr (N == 16 && !kBf16) RZ_WGMMA_SHARED("f16", "128", RZ_TO_64, RZ_D16, "%64", "%65", "%66", "%67");
}
template <class T, bool kTransposed, int N>
__device__ __forceinline__ void wgmma(float (&d)[N][4], const uint32_t (&a)[4], uint64_t b, bool add) {
  static_assert(N == 8 || N == 12 || N == 16);
  constexpr bool kBf16 = std::is_same_v<T, bf16>;
  if constexpr (N == 8 && kBf16) RZ_WGMMA_REGISTERS("bf16", "64", RZ_TO_32, RZ_D8, "%32", "%33", "%34", "%35", "%36", "%37", "%38");
  if constexpr (N == 8 && !kBf16) RZ_WGMMA_REGISTERS("f16", "64", RZ_TO_32, RZ_D8, "%32", "%33", "%34", "%35", "%36", "%37", "%38");
  if constexpr (N == 12 && kBf16) RZ_WGMMA_REGISTERS("bf16", "96", RZ_TO_48, RZ_D12, "%48", "%49", "%50", "%51", "%52", "%53", "%54");
  if constexpr (N == 12 && !kBf16) RZ_WGMMA_REGISTERS("f16", "96", RZ_TO_48, RZ_D12, "%48", "%49", "%50", "%51", "%52", "%53", "%54");
  if constexpr (N == 16 && kBf16) RZ_WGMMA_REGISTERS("bf16", "128", RZ_TO_64, RZ_D16, "%64", "%65", "%66", "%67", "%68", "%69", "%70");
  if constexpr (N == 16 && !kBf16) RZ_WGMMA_REGISTERS("f16", "128", RZ_TO_64, RZ_D16, "%64", "%65", "%66", "%67", "%68", "%69", "%70");
}

#undef RZ_D
#undef RZ_D8
#undef RZ_D12
#undef RZ_D16
#undef RZ_TO_32
#undef RZ_TO_48
#undef RZ_TO_64
#undef RZ_WGMMA
#undef RZ_WGMMA_SHARED
#undef RZ_WGMMA_REGISTERS

// ---- registers ----
// A warpgroup gives back registers, or takes what others gave, to have so many a thread.

template <int kRegisters>
__device__ __forceinline__ void fewer_registers() {
  RZ_HOPPER("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void more_registers() {
  RZ_HOPPER("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace rz::cuda
