// Embedding. The gradient of one element is summed in row order by one thread; for 16-bit tables the rows of a word are
// summed in float32 and rounded once.
#include "ops/embedding.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"

namespace rz::cpu {

void run(const EmbeddingForward& op) {
  auto ids = op.ids.as<int64_t>();
  auto bytes = static_cast<size_t>(op.dim * size_of(op.table.dtype));
  parallel_for(op.rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) std::memcpy(at(op.out, r * op.dim), at(op.table, ids[r] * op.dim), bytes);
  });
}

void run(const EmbeddingBackward& op) {
  auto ids = op.ids.as<int64_t>();
  if (!op.accumulate)
    parallel_for(op.vocab, 64, [&](int64_t begin, int64_t end) {
      std::memset(at(op.d_table, begin * op.dim), 0, static_cast<size_t>((end - begin) * op.dim * size_of(op.d_table.dtype)));
    });
  if (op.d_table.dtype == DType::Float32)
    return parallel_for(op.dim, 256, [&](int64_t c, int64_t end) {
      for (int64_t r = 0; r < op.rows; ++r) {
        float* to = op.d_table.as<float>() + ids[r] * op.dim + c;
        simd().add_to_f32[index_of(op.d_out.dtype)](to, to, at(op.d_out, r * op.dim + c), end - c);
      }
    });
  std::vector<int64_t> order(static_cast<size_t>(op.rows));
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return ids[a] < ids[b]; });
  parallel_for(op.dim, 256, [&](int64_t c, int64_t end) {
    Scratch scratch((end - c) * 4);
    float* sum = scratch.as();
    for (size_t i = 0; i < order.size();) {
      int64_t id = ids[order[i]];
      simd().to_f32[index_of(op.d_table.dtype)](sum, at(op.d_table, id * op.dim + c), end - c);
      for (; i < order.size() && ids[order[i]] == id; ++i)
        simd().add_to_f32[index_of(op.d_out.dtype)](sum, sum, at(op.d_out, order[i] * op.dim + c), end - c);
      simd().from_f32[index_of(op.d_table.dtype)](at(op.d_table, id * op.dim + c), sum, end - c);
    }
  });
}

}  // namespace rz::cpu
