// How the copy engine of sm_90 sees a tensor in memory: the opaque CUtensorMap of the driver, given to kernels by value.
#pragma once
#include <cstdint>

#include "core/dtype.h"

namespace rz::cuda {

struct alignas(128) TensorMap {
  uint64_t word[16];
};

// Places within a row of shared memory change with the row, by so many bytes: numbers of CUtensorMapSwizzle.
enum class Swizzle : int { Bytes64 = 2, Bytes128 = 3 };

// A tensor (rows, heads, dim) of a 16-bit dtype, at a multiple of 16 bytes, dim a multiple of 8; copied in boxes of `columns` of
// one head by `box_rows`. What a box has beyond the tensor becomes zeros. Throws ERR_CUDA where the driver refuses.
TensorMap tensor_map(const void* data, DType dtype, int64_t rows, int64_t heads, int64_t dim, int columns, int box_rows, Swizzle swizzle);

}  // namespace rz::cuda
