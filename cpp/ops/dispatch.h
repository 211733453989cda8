// Which ops a device has. cpp/cuda/op_table.cc sets an entry for every op whose header declares `cuda::run`.
#pragma once
#include "core/stream.h"
#include "ops/op.h"

namespace rz::cuda {

template <class Op>
inline void (*enqueue)(const Op&, Stream&) = nullptr;

template <class Op>
void expect_op() {
  if (!enqueue<Op>) fail("ERR_DEVICE", "[", Op::name, "] does not exist on device cuda");
}

}  // namespace rz::cuda
