// Random fills. Element i of x is element `offset + i` of the tensor that (seed, key) names (core/philox.h).
#pragma once
#include "ops/op.h"

namespace rz {

struct TensorKey {
  uint64_t hash;  // philox::key_of the name; JavaScript gives the name
};

struct RandomFill {
  static constexpr const char* name = "random_fill";
  View x;  // floating
  uint64_t seed;
  TensorKey key;
  int64_t offset;
  bool normal;  // normal: mean a, standard deviation b; else uniform in [a, b)
  float a, b;
  RZ_OPERANDS(x, seed, key, offset, normal, a, b)
  void check() const { expect_floating(name, "x", x); }
};

namespace cpu {
void run(const RandomFill&);
}  // namespace cpu

namespace cuda {
void run(const RandomFill&, CudaStream&);
}  // namespace cuda
}  // namespace rz
