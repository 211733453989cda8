// Splits attention into tasks of one sequence and key/value head (forward: and a range of query blocks). A task's result
// does not depend on which thread runs it.
#include "ops/attention.h"

#include <algorithm>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"

namespace rz::cpu {

static int64_t longest(const int32_t* cu, int64_t sequences) {
  int64_t most = 0;
  for (int64_t s = 0; s < sequences; ++s) most = std::max<int64_t>(most, cu[s + 1] - cu[s]);
  return most;
}

void run(const AttentionForward& op) {
  const Table& t = simd();
  AttentionForwardArgs a{};
  a.q = op.q.data, a.k = op.k.data, a.v = op.v.data;
  a.cu_q = op.cu_q.as<int32_t>(), a.cu_k = op.cu_k.as<int32_t>();
  a.q_rows = op.q_rows, a.heads = op.heads, a.kv_heads = op.kv_heads, a.head_dim = op.head_dim;
  a.window = op.window, a.scale = op.scale;
  a.o = op.o.data, a.lse = op.lse.as<float>();

  // Units in order: sequence, head, query block. A unit's cost is about its position in the sequence.
  struct Sequence {
    int64_t blocks, cost;  // cost: of one head
  };
  std::vector<Sequence> sequences(static_cast<size_t>(op.sequences));
  int64_t total = 0;
  for (int64_t s = 0; s < op.sequences; ++s) {
    int64_t blocks = (a.cu_q[s + 1] - a.cu_q[s] + t.attention_q_block - 1) / t.attention_q_block;
    sequences[static_cast<size_t>(s)] = {blocks, blocks * (blocks + 1) / 2};
    total += blocks * (blocks + 1) / 2 * op.kv_heads;
  }
  const int64_t scratch_floats = t.attention_forward_scratch(a, longest(a.cu_k, op.sequences));
  const auto kernel = t.attention_forward[index_of(op.q.dtype)];
  parallel_for(total, 1, [&](int64_t begin, int64_t end) {
    Scratch scratch(scratch_floats * 4);
    int64_t at = 0;  // the units whose first cost point lies in [begin, end) are this thread's
    for (int64_t s = 0; s < op.sequences && at < end; ++s) {
      auto [blocks, cost] = sequences[static_cast<size_t>(s)];
      if (at + cost * op.kv_heads <= begin) {
        at += cost * op.kv_heads;
        continue;
      }
      for (int64_t h = 0; h < op.kv_heads && at < end; ++h) {
        int64_t first = blocks, last = 0;
        for (int64_t b = 0; b < blocks; at += ++b)
          if (at >= begin && at < end) first = std::min(first, b), last = b + 1;
        if (first < last) kernel(a, s, h, first, last, scratch.as());
      }
    }
  });
}

void run(const AttentionBackward& op) {
  const Table& t = simd();
  AttentionBackwardArgs a{};
  a.q = op.q.data, a.k = op.k.data, a.v = op.v.data;
  a.cu_q = a.cu_k = op.cu.as<int32_t>();
  a.q_rows = op.rows, a.heads = op.heads, a.kv_heads = op.kv_heads, a.head_dim = op.head_dim;
  a.window = op.window, a.scale = op.scale;
  a.dq = op.dq.data, a.dk = op.dk.data, a.dv = op.dv.data;
  a.d_o = op.d_o.data, a.o = op.o.data, a.lse = op.lse.as<float>();

  const int64_t scratch_floats = t.attention_backward_scratch(a, longest(a.cu_q, op.sequences));
  const auto kernel = t.attention_backward[index_of(op.q.dtype)];
  parallel_for(op.sequences * op.kv_heads, 1, [&](int64_t begin, int64_t end) {
    Scratch scratch(scratch_floats * 4);
    for (int64_t i = begin; i < end; ++i) kernel(a, i / op.kv_heads, i % op.kv_heads, scratch.as());
  });
}

}  // namespace rz::cpu
