// Mixture of experts. Rows are gathered expert by expert, so that each expert is three GEMMs of its own rows; the
// results are added to their rows in the order of experts, whatever the number of threads. Backward keeps w1 x and w3 x
// (2 · top_k · inner a row, as a dense layer would); the activation and the gathered rows are made again, since that costs
// one pass over memory beside six GEMMs. Other buffers are those of one expert.
#include "ops/moe.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>
#include <utility>

#include "cpu/matmul.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"

namespace rz::cpu {
namespace {

// ---- routing ----

using Candidate = std::pair<float, int32_t>;

bool is_better(const Candidate& a, const Candidate& b) {
  return (std::isnan(a.first) && !std::isnan(b.first)) || a.first > b.first;
}

// Equal probabilities (common with bfloat16 logits) fall as these functions leave them: torch.topk is the same calls.
void select_top(Candidate* all, int64_t count, int64_t k) {
  if (k * 64 <= count) return std::partial_sort(all, all + k, all + count, is_better);
  std::nth_element(all, all + k - 1, all + count, is_better);
  std::sort(all, all + k - 1, is_better);
}

void softmax(float* x, int64_t n) {
  float top = *std::max_element(x, x + n), sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i] = std::exp(x[i] - top);
  for (int64_t i = 0; i < n; ++i) x[i] /= sum;
}

void group_by_expert(const RoutingForward& op) {
  auto chosen = op.chosen.as<int32_t>(), order = op.order.as<int32_t>(), offsets = op.offsets.as<int32_t>();
  const int64_t pairs = op.rows * op.top_k;
  std::fill(offsets, offsets + op.experts + 1, 0);
  for (int64_t p = 0; p < pairs; ++p) ++offsets[chosen[p] + 1];
  std::partial_sum(offsets, offsets + op.experts + 1, offsets);
  std::vector<int32_t> next(offsets, offsets + op.experts);
  for (int64_t p = 0; p < pairs; ++p) order[next[static_cast<size_t>(chosen[p])]++] = static_cast<int32_t>(p);
}

void measure_balance(const RoutingForward& op) {
  auto pairs = op.balance.as<float>(), sums = pairs + op.experts, probs = op.probs.as<float>();
  auto chosen = op.chosen.as<int32_t>();
  std::fill(pairs, pairs + op.experts, 0.0f);
  std::vector<double> totals(static_cast<size_t>(op.experts));
  for (int64_t p = 0; p < op.balance_rows * op.top_k; ++p) ++pairs[chosen[p]];
  for (int64_t r = 0; r < op.balance_rows; ++r)
    for (int64_t e = 0; e < op.experts; ++e) totals[static_cast<size_t>(e)] += probs[r * op.experts + e];
  std::copy(totals.begin(), totals.end(), sums);
}

// ---- experts ----

constexpr int64_t kGrain = 1 << 13;  // elements

int64_t row_grain(int64_t dim) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, dim)); }

// The pairs of one expert.
struct Group {
  const int32_t* pairs;
  int64_t first, count;
};

std::vector<Group> groups_of(const View& order, const View& offsets) {
  std::vector<Group> groups(static_cast<size_t>(offsets.numel - 1));
  for (size_t e = 0; e < groups.size(); ++e) {
    int64_t first = offsets.as<int32_t>()[e], end = offsets.as<int32_t>()[e + 1];
    groups[e] = {order.as<int32_t>() + first, first, end - first};
  }
  return groups;
}

int64_t largest(const std::vector<Group>& groups) {
  int64_t most = 0;
  for (const Group& g : groups) most = std::max(most, g.count);
  return most;
}

Matrix gather(void* to, const View& x, const Group& group, int64_t dim, int64_t top_k) {
  const auto bytes = static_cast<size_t>(dim * size_of(x.dtype));
  parallel_for(group.count, row_grain(dim), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      std::memcpy(static_cast<char*>(to) + static_cast<size_t>(i) * bytes, at(x, group.pairs[i] / top_k * dim), bytes);
  });
  return {to, x.dtype, dim, 1};
}

// A (rows, dim) result that experts add to: the tensor itself in float32, else a buffer that is cast at the end.
class RowSums {
 public:
  RowSums(const View& to, int64_t dim)
      : to_(to), dim_(dim), buffer_(to.dtype == DType::Float32 ? 0 : to.numel * 4),
        sums_(to.dtype == DType::Float32 ? to.as<float>() : buffer_.as()) {
    parallel_for(to.numel, kGrain, [&](int64_t begin, int64_t end) { std::fill(sums_ + begin, sums_ + end, 0.0f); });
  }
  // Adds the rows of a group, times the pairs' weights where given. A row is in a group once.
  void add(const float* rows, const Group& group, int64_t top_k, const float* weights) {
    parallel_for(group.count, row_grain(dim_), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        int64_t pair = group.pairs[i];
        simd().scale_add[0](sums_ + pair / top_k * dim_, rows + i * dim_, weights ? weights[pair] : 1.0f, dim_);
      }
    });
  }
  void finish() {
    if (to_.dtype == DType::Float32) return;
    parallel_for(to_.numel, kGrain, [&](int64_t begin, int64_t end) {
      simd().from_f32[index_of(to_.dtype)](at(to_, begin), sums_ + begin, end - begin);
    });
  }

 private:
  View to_;
  int64_t dim_;
  Scratch buffer_;
  float* sums_;
};

}  // namespace

void run(const RoutingForward& op) {
  auto weights = op.weights.as<float>(), probs = op.probs.as<float>();
  auto chosen = op.chosen.as<int32_t>();
  parallel_for(op.rows, 256, [&](int64_t begin, int64_t end) {
    std::vector<Candidate> candidates(static_cast<size_t>(op.experts));
    for (int64_t r = begin; r < end; ++r) {
      float* p = probs + r * op.experts;
      simd().to_f32[index_of(op.logits.dtype)](p, at(op.logits, r * op.experts), op.experts);
      softmax(p, op.experts);
      for (int64_t e = 0; e < op.experts; ++e) candidates[static_cast<size_t>(e)] = {p[e], static_cast<int32_t>(e)};
      select_top(candidates.data(), op.experts, op.top_k);
      float sum = 0;
      for (int64_t k = 0; k < op.top_k; ++k) sum += candidates[static_cast<size_t>(k)].first;
      for (int64_t k = 0; k < op.top_k; ++k) {
        const auto [probability, expert] = candidates[static_cast<size_t>(k)];
        weights[r * op.top_k + k] = probability / sum;
        chosen[r * op.top_k + k] = expert;
      }
    }
  });
  group_by_expert(op);
  if (op.balance) measure_balance(op);
}

void run(const RoutingBackward& op) {
  auto d_weights = op.d_weights.as<float>(), weights = op.weights.as<float>(), probs = op.probs.as<float>();
  auto chosen = op.chosen.as<int32_t>();
  parallel_for(op.rows, 256, [&](int64_t begin, int64_t end) {
    std::vector<float> d(static_cast<size_t>(op.experts));
    for (int64_t r = begin; r < end; ++r) {
      const float *p = probs + r * op.experts, *w = weights + r * op.top_k, *dw = d_weights + r * op.top_k;
      const int32_t* c = chosen + r * op.top_k;
      const bool counts = op.d_probs && r < op.balance_rows;
      for (int64_t e = 0; e < op.experts; ++e)
        d[static_cast<size_t>(e)] = counts ? op.d_probs_scale * op.d_probs.as<float>()[e] : 0.0f;
      float sum = 0, along = 0, mean = 0;
      for (int64_t k = 0; k < op.top_k; ++k) sum += p[c[k]], along += dw[k] * w[k];
      for (int64_t k = 0; k < op.top_k; ++k) d[static_cast<size_t>(c[k])] += (dw[k] - along) / sum;
      for (int64_t e = 0; e < op.experts; ++e) mean += p[e] * d[static_cast<size_t>(e)];
      for (int64_t e = 0; e < op.experts; ++e) d[static_cast<size_t>(e)] = p[e] * (d[static_cast<size_t>(e)] - mean);
      simd().from_f32[index_of(op.d_logits.dtype)](at(op.d_logits, r * op.experts), d.data(), op.experts);
    }
  });
}

void run(const ExpertsForward& op) {
  const DType type = op.x.dtype;
  const int64_t dim = op.dim, inner = op.inner, size = size_of(type);
  const std::vector<Group> groups = groups_of(op.order, op.offsets);
  const int64_t most = largest(groups);
  Scratch x_rows(most * dim * size), act(most * inner * size), out(most * dim * 4);
  Scratch gate_and_up(op.gate ? 0 : 2 * most * inner * size);
  RowSums y(op.y, dim);
  for (size_t e = 0; e < groups.size(); ++e) {
    const Group& group = groups[e];
    const int64_t n = group.count;
    if (n == 0) continue;
    const Matrix x = gather(x_rows.as<void>(), op.x, group, dim, op.top_k);
    char* gate = op.gate ? at(op.gate, group.first * inner) : gate_and_up.as<char>();
    char* up = op.gate ? at(op.up, group.first * inner) : gate_and_up.as<char>() + most * inner * size;
    gemm(n, inner, dim, x, row_major(op.w1[e], dim).transposed(), {gate, type, inner, 1}, View{}, false);
    gemm(n, inner, dim, x, row_major(op.w3[e], dim).transposed(), {up, type, inner, 1}, View{}, false);
    parallel_for(n * inner, kGrain, [&](int64_t i, int64_t end) {
      simd().swiglu_forward[index_of(type)](act.as<char>() + i * size, gate + i * size, up + i * size, end - i);
    });
    gemm(n, dim, inner, {act.as<void>(), type, inner, 1}, row_major(op.w2[e], inner).transposed(),
         {out.as<void>(), DType::Float32, dim, 1}, View{}, false);
    y.add(out.as(), group, op.top_k, op.weights.as<float>());
  }
  y.finish();
}

void run(const ExpertsBackward& op) {
  const DType type = op.x.dtype;
  const int64_t dim = op.dim, inner = op.inner, size = size_of(type);
  const std::vector<Group> groups = groups_of(op.order, op.offsets);
  const int64_t most = largest(groups);
  Scratch x_rows(most * dim * size), dy_rows(most * dim * size), act(most * inner * size), d_act(most * inner * 4);
  Scratch dx_rows(op.dx ? most * dim * 4 : 0);
  std::optional<RowSums> dx;
  if (op.dx) dx.emplace(op.dx, dim);
  for (size_t e = 0; e < groups.size(); ++e) {
    const Group& group = groups[e];
    const int64_t n = group.count;
    const Matrix x = gather(x_rows.as<void>(), op.x, group, dim, op.top_k);
    const Matrix dy = gather(dy_rows.as<void>(), op.dy, group, dim, op.top_k);
    char *gate = at(op.gate, group.first * inner), *up = at(op.up, group.first * inner);
    gemm(n, inner, dim, dy, row_major(op.w2[e], inner), {d_act.as<void>(), DType::Float32, inner, 1}, View{}, false);
    parallel_for(n, row_grain(inner), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t pair = group.pairs[i], offset = i * inner * size;
        op.d_weights.as<float>()[pair] = simd().weighted_swiglu_backward[index_of(type)](
            gate + offset, up + offset, act.as<char>() + offset, d_act.as() + i * inner, gate + offset, up + offset,
            op.weights.as<float>()[pair], inner);
      }
    });
    const Matrix d_gate = {gate, type, inner, 1}, d_up = {up, type, inner, 1}, weighted = {act.as<void>(), type, inner, 1};
    if (op.dx && n > 0) {
      const Matrix rows = {dx_rows.as<void>(), DType::Float32, dim, 1};
      gemm(n, dim, inner, d_gate, row_major(op.w1[e], dim), rows, View{}, false);
      gemm(n, dim, inner, d_up, row_major(op.w3[e], dim), rows, View{}, true);
      dx->add(dx_rows.as(), group, op.top_k, nullptr);
    }
    // An expert without pairs has GEMMs over no rows: zero, or nothing to add.
    const size_t experts = groups.size();
    if (op.dw1[e]) gemm(inner, dim, n, d_gate.transposed(), x, row_major(op.dw1[e], dim), View{}, op.accumulate[e]);
    if (op.dw2[e])
      gemm(dim, inner, n, dy.transposed(), weighted, row_major(op.dw2[e], inner), View{}, op.accumulate[experts + e]);
    if (op.dw3[e])
      gemm(inner, dim, n, d_up.transposed(), x, row_major(op.dw3[e], dim), View{}, op.accumulate[2 * experts + e]);
  }
  if (dx) dx->finish();
}

// The balance of all layers, in double.
static void add_layers(const View& balance, int64_t layers, int64_t experts, int64_t e, double& pairs, double& probs) {
  pairs = probs = 0;
  for (int64_t l = 0; l < layers; ++l) {
    pairs += balance.as<float>()[2 * l * experts + e];
    probs += balance.as<float>()[(2 * l + 1) * experts + e];
  }
}

void run(const BalancingLossForward& op) {
  const double n = static_cast<double>(op.layers * op.rows);
  double sum = 0, pairs, probs;
  for (int64_t e = 0; e < op.experts; ++e) {
    add_layers(op.balance, op.layers, op.experts, e, pairs, probs);
    sum += pairs / n * (probs / n);
  }
  *op.total.as<float>() =
      static_cast<float>(*op.loss.as<float>() + op.coefficient * static_cast<double>(op.experts) * sum);
}

void run(const BalancingLossBackward& op) {
  const double n = static_cast<double>(op.layers * op.rows);
  double pairs, probs;
  for (int64_t e = 0; e < op.experts; ++e) {
    add_layers(op.balance, op.layers, op.experts, e, pairs, probs);
    op.d_probs.as<float>()[e] = static_cast<float>(*op.d_total.as<float>() * op.coefficient *
                                                   static_cast<double>(op.experts) * pairs / n / n);
  }
}

}  // namespace rz::cpu
