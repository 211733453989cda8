// Tensor cores and asynchronous copies of sm_80 and later: the instructions, no more. Those of a warp are called by all its
// lanes together. With g = lane / 4 and t = lane % 4, the fragments of a product c (16, 8) += a (16, 16) b (16, 8) are
//   a[0] a(g, 2t), a(g, 2t + 1)          a[1] a(g + 8, 2t), …          b0 b(2t, g), b(2t + 1, g)
//   a[2] a(g, 2t + 8), a(g, 2t + 9)      a[3] a(g + 8, 2t + 8), …      b1 b(2t + 8, g), b(2t + 9, g)
//   c[0] c(g, 2t)     c[1] c(g, 2t + 1)     c[2] c(g + 8, 2t)     c[3] c(g + 8, 2t + 1)
// where a word holds two values, the first in its low half. The emulator has a header of the same name.
#pragma once
#include "core/dtype.h"
#include "cuda/device.h"

namespace rz::cuda {

template <class T>
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ __forceinline__ void mma<bf16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void mma<f16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two values as one word of a fragment.
template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack<bf16>(float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
template <>
__device__ __forceinline__ uint32_t pack<f16>(float low, float high) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

// Where something is in shared memory, in bytes: an integer, so that sums of it stay cheap.
using SharedAddress = uint32_t;
__device__ __forceinline__ SharedAddress shared_address(const void* shared) {
  return static_cast<SharedAddress>(__cvta_generic_to_shared(shared));
}
// The same address, from which the compiler does not know how it came about: it will not compute sums of it ahead of a loop
// and keep each in a register.
__device__ __forceinline__ void renew(SharedAddress& address) { asm volatile("" : "+r"(address)); }

// Matrices of 8 rows of 16 bytes in shared memory: lane 8i + r gives the address of row r of matrix i, and receives in word i
// values 2t and 2t + 1 of row g; transposed: values g of rows 2t and 2t + 1.
__device__ __forceinline__ void load_matrices(uint32_t (&word)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "r"(row)
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&word)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "r"(row)
               : "memory");
}
// Two matrices: the addresses of lanes 16 and above are not used.
__device__ __forceinline__ void load_matrices(uint32_t (&word)[2], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(word[0]), "=r"(word[1])
               : "r"(row)
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&word)[2], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(word[0]), "=r"(word[1])
               : "r"(row)
               : "memory");
}

// Copies 16 bytes (both addresses multiples of 16), or 4, to shared memory; zeros if not `valid`, and then `from` is not read.
// They are there for the thread that asked for them when it has waited for their group, for others after a barrier.
__device__ __forceinline__ void copy_async_16(SharedAddress to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void copy_async_4(SharedAddress to, const void* from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(valid ? 4 : 0)
               : "memory");
}
// Ends a group of copies, which may be empty.
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most kPending of the calling thread's groups are still under way.
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// 2^x within 2 ulp; 0 where that would be subnormal.
__device__ __forceinline__ float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace rz::cuda
