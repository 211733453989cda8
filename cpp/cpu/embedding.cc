// Embedding. The gradient of one element is summed in row order by one thread; for 16-bit tables the rows of a token are
// summed in float32 and rounded once.
#include "ops/embedding.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"

namespace rz::cpu {

void run(const EmbeddingForward& op) {
  auto ids = op.ids.as<int64_t>();
  auto bytes = static_cast<size_t>(op.dim * size_of(op.table.dtype));
  parallel_for(op.rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      int64_t id = ids[r] - op.first;
      char* to = at(op.out, r * op.dim);
      if (id >= 0 && id < op.vocab) std::memcpy(to, at(op.table, id * op.dim), bytes);
      else std::memset(to, 0, bytes);
    }
  });
}

void run(const EmbeddingBackward& op) {
  auto ids = op.ids.as<int64_t>();
  auto inside = [&](int64_t r) { return ids[r] >= op.first && ids[r] - op.first < op.vocab; };
  if (!op.accumulate)
    parallel_for(op.vocab, 64, [&](int64_t begin, int64_t end) {
      std::memset(at(op.d_table, begin * op.dim), 0, static_cast<size_t>((end - begin) * op.dim * size_of(op.d_table.dtype)));
    });
  if (op.d_table.dtype == DType::Float32)
    return parallel_for(op.dim, 256, [&](int64_t c, int64_t end) {
      for (int64_t r = 0; r < op.rows; ++r) {
        if (!inside(r)) continue;
        float* to = op.d_table.as<float>() + (ids[r] - op.first) * op.dim + c;
        simd().add_to_f32[index_of(op.d_out.dtype)](to, to, at(op.d_out, r * op.dim + c), end - c);
      }
    });
  std::vector<int64_t> order;
  order.reserve(static_cast<size_t>(op.rows));
  for (int64_t r = 0; r < op.rows; ++r)
    if (inside(r)) order.push_back(r);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return ids[a] < ids[b]; });
  parallel_for(op.dim, 256, [&](int64_t c, int64_t end) {
    Scratch scratch((end - c) * 4);
    float* sum = scratch.as();
    for (size_t i = 0; i < order.size();) {
      int64_t id = ids[order[i]];
      char* to = at(op.d_table, (id - op.first) * op.dim + c);
      simd().to_f32[index_of(op.d_table.dtype)](sum, to, end - c);
      for (; i < order.size() && ids[order[i]] == id; ++i)
        simd().add_to_f32[index_of(op.d_out.dtype)](sum, sum, at(op.d_out, order[i] * op.dim + c), end - c);
      simd().from_f32[index_of(op.d_table.dtype)](to, sum, end - c);
    }
  });
}

}  // namespace rz::cpu
