// The SIMD kernels of the running processor, and the dispatch by dtype that the ops share.
#pragma once
#include "cpu/simd/table.h"
#include "ops/op.h"

namespace rz::cpu {

inline int index_of(DType t) { return static_cast<int>(t); }  // floating dtypes only: ops check theirs

inline char* at(const View& v, int64_t element) { return v.as<char>() + element * size_of(v.dtype); }

}  // namespace rz::cpu
