// Plain copies of head_dim elements: memory speed is all there is to gain.
#include "ops/qkv.h"

#include <cstring>

#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace rz::cpu {

// copy(fused, part, bytes) for each head of a row and each of its three parts.
template <class Copy>
static void each_part(const View& qkv, const View& q, const View& k, const View& v, int64_t rows, int64_t heads,
                      int64_t head_dim, Copy copy) {
  const int64_t cells = rows * heads, bytes = head_dim * size_of(qkv.dtype);
  parallel_for(cells, std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(1, bytes)), [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      char* fused = qkv.as<char>() + 3 * i * bytes;
      copy(fused, q.as<char>() + i * bytes, bytes);
      copy(fused + bytes, k.as<char>() + i * bytes, bytes);
      copy(fused + 2 * bytes, v.as<char>() + i * bytes, bytes);
    }
  });
}

void run(const SplitQkv& op) {
  each_part(op.qkv, op.q, op.k, op.v, op.rows, op.heads, op.head_dim, [](char* fused, char* part, int64_t bytes) {
    std::memcpy(part, fused, static_cast<size_t>(bytes));
  });
}

void run(const MergeQkv& op) {
  each_part(op.qkv, op.q, op.k, op.v, op.rows, op.heads, op.head_dim, [](char* fused, char* part, int64_t bytes) {
    std::memcpy(fused, part, static_cast<size_t>(bytes));
  });
}

}  // namespace rz::cpu
