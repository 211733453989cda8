// The language of kernels beyond C++: threads, shared memory, warps. The emulator has a header of the same name, in which
// these are host code; so kernels use what is here and nothing of CUDA besides.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

// Memory of a block: `count` elements called `name`.
#define RZ_SHARED(type, name, count) __shared__ type name[count]

namespace rz::cuda {

constexpr unsigned kFullMask = 0xffffffffu;
constexpr int kWarp = 32;

// The memory whose size launch() was given.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char rz_dynamic_shared[];
  return reinterpret_cast<T*>(rz_dynamic_shared);
}

}  // namespace rz::cuda
