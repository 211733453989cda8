// The arithmetic of collectives on host memory. Reductions run over the sources in the order given, in float32 for
// floating dtypes, so that every rank that computes an element gets the same bits.
#pragma once
#include <cstdint>

#include "core/dtype.h"

namespace rz::comm {

enum class ReduceOp : uint8_t { Sum = 0, Avg = 1, Max = 2, Min = 3 };

constexpr const char* name_of(ReduceOp op) {
  constexpr const char* names[] = {"sum", "avg", "max", "min"};
  return names[static_cast<int>(op)];
}

// Copies; converts where both are floating and differ.
void cast_copy(void* out, DType out_type, const void* in, DType in_type, int64_t count);

// out = op over sources (+ out if `accumulate`). `out` may be one of the sources if the dtypes are equal. An average is over
// `num_averaged`, where the sources are sums already; 0: over the sources.
void reduce(void* out, DType out_type, const void* const* sources, DType in_type, int num_sources, int64_t count, ReduceOp op, bool accumulate,
            int num_averaged = 0);

}  // namespace rz::comm
