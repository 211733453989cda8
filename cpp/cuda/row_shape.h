// How many threads share a row of a norm or a softmax so that each keeps its part in registers, and the block they form.
#pragma once
#include <cuda_runtime_api.h>

#include "core/error.h"
#include "cuda/grid.h"
#include "cuda/vec.h"

namespace rz::cuda {

constexpr int kGroupsKept = 2;  // groups of a row that a thread keeps: 16 values

struct RowShape {
  int threads;  // of a row: a multiple of 32
  int rows;     // of a block: several when a warp suffices for one

  RowShape(const char* op, int64_t dim) {
    constexpr int64_t kMost = int64_t{kGroupsKept} * kGroup * 1024;
    if (dim > kMost) fail("ERR_SHAPE", "[", op, "] on device cuda a row has at most ", kMost, " elements but has ", dim);
    threads = static_cast<int>(std::max<int64_t>(1, ceil_div(dim, kGroupsKept * kGroup * 32)) * 32);
    rows = threads == 32 ? 4 : 1;
  }
  dim3 block() const { return dim3(static_cast<unsigned>(threads), static_cast<unsigned>(rows)); }
  unsigned blocks(int64_t of_rows) const { return static_cast<unsigned>(ceil_div(of_rows, rows)); }
};

}  // namespace rz::cuda
