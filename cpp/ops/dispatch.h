// Which ops a device has. cpp/cuda/op_table.cc sets an entry for every op whose header declares `cuda::run`.
#pragma once
#include "core/stream.h"
#include "ops/op.h"

namespace rz::cuda {

template <class Op>
inline void (*enqueue)(const Op&, Stream&) = nullptr;

// The device's rule for losses that are made chunk by chunk (ops/cross_entropy.h).
inline int64_t (*loss_chunk_rows_of_device)(int64_t vocab, int64_t rows) = nullptr;

template <class Op>
void expect_op() {
  if (!enqueue<Op>) fail("ERR_DEVICE", "[", Op::name, "] does not exist on device cuda");
}

}  // namespace rz::cuda
