// Dropout. Element (row, column) is zero where draw number rows[row] · 2^20 + column of the uniform draws that (seed, key) names
// (core/philox.h) lies below p; the others are divided by 1 - p. Backward is the same op on the gradient.
#pragma once
#include "ops/op.h"
#include "ops/random.h"

namespace rz {

constexpr int kDropoutColumnBits = 20;

struct Dropout {
  static constexpr const char* name = "dropout";
  View y;     // (rows, columns)
  View x;     // (rows, columns)
  View rows;  // (rows) int64: the number of each row
  int64_t columns;
  int64_t first_column;  // of x in the whole
  float p;               // above 0
  uint64_t seed;
  TensorKey key;
  RZ_OPERANDS(y, x, rows, columns, first_column, p, seed, key)
  float scale() const { return p < 1.0f ? 1.0f / (1.0f - p) : 0.0f; }
  void check() const {
    expect_floating(name, "x", x);
    expect_dtype(name, "y", y, x.dtype);
    expect_dtype(name, "rows", rows, DType::Int64);
    expect_numel(name, "x", x, rows.numel * columns);
    expect_numel(name, "y", y, x.numel);
    expect(p > 0.0f && p <= 1.0f, name, "p must lie in (0, 1]");
    expect(first_column >= 0 && first_column + columns <= int64_t{1} << kDropoutColumnBits, name, "there are at most 2^20 columns");
  }
};

namespace cpu {
void run(const Dropout&);
}  // namespace cpu

namespace cuda {
void run(const Dropout&, CudaStream&);
}  // namespace cuda
}  // namespace rz
