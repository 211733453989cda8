#include "cuda/tensor_map.h"

#include "core/error.h"
#include "cuda/driver.h"

namespace rz::cuda {

// Of cuda.h, which no build needs; test/emulated/emulator compares them.
static int map_type(DType dtype) { return dtype == DType::BFloat16 ? kTensorMapBFloat16 : kTensorMapFloat16; }

TensorMap tensor_map(const void* data, DType dtype, int64_t rows, int64_t heads, int64_t dim, int columns, int box_rows, Swizzle swizzle) {
  constexpr int kRank = 3, kNoInterleave = 0, kZeros = 0;
  const auto bytes = static_cast<uint64_t>(size_of(dtype));
  const uint64_t size[kRank] = {static_cast<uint64_t>(dim), static_cast<uint64_t>(heads), static_cast<uint64_t>(rows)};
  const uint64_t stride[kRank - 1] = {size[0] * bytes, size[0] * size[1] * bytes};
  const uint32_t box[kRank] = {static_cast<uint32_t>(columns), 1, static_cast<uint32_t>(box_rows)}, step[kRank] = {1, 1, 1};
  TensorMap map;
  const int status = driver().cuTensorMapEncodeTiled(&map, map_type(dtype), kRank, const_cast<void*>(data), size, stride, box, step,
                                                     kNoInterleave, static_cast<int>(swizzle), kTensorMapPromote128, kZeros);
  if (status != 0)
    fail("ERR_CUDA", "describing a tensor (", rows, ", ", heads, ", ", dim, ") to the copy engine: the driver answers ", status);
  return map;
}

}  // namespace rz::cuda
