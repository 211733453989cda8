// Mixture of experts: each row goes to the best top_k of the experts, by the softmax of its router logits; y is the sum of
// its experts' gated MLPs, weighted. A pair is one choice of one row, row · top_k + slot. Pairs grouped by expert (`order`,
// `offsets`) are in rising order within a group. Counts stay on the device: who enqueues these ops never reads them.
#pragma once
#include <vector>

#include "ops/op.h"

namespace rz {

struct RoutingForward {
  static constexpr const char* name = "routing_forward";
  View weights;          // (rows, top_k) float32: the chosen probabilities over their sum, falling
  View chosen;           // (rows, top_k) int32: their experts; ties fall as in torch.topk on the CPU
  View order;            // (rows · top_k) int32: pairs, grouped by expert
  View offsets;          // (experts + 1) int32: group e is order[offsets[e]] … order[offsets[e + 1]]
  View probs;            // (rows, experts) float32: softmax over all experts, kept for backward
  OptionalView balance;  // (2, experts) float32: pairs of each expert, and the sum of its probabilities
  View logits;           // (rows, experts) any floating dtype
  int64_t rows, experts, top_k;
  int64_t balance_rows;  // only the first so many rows count in `balance`
  RZ_OPERANDS(weights, chosen, order, offsets, probs, balance, logits, rows, experts, top_k, balance_rows)
  void check() const {
    expect(top_k >= 1 && top_k <= experts, name, "top_k must be from 1 to the number of experts");
    expect_numel(name, "weights", weights, rows * top_k);
    expect_numel(name, "chosen", chosen, rows * top_k);
    expect_numel(name, "order", order, rows * top_k);
    expect_numel(name, "offsets", offsets, experts + 1);
    expect_numel(name, "probs", probs, rows * experts);
    expect_numel(name, "logits", logits, rows * experts);
    for (const View* t : {&chosen, &order, &offsets}) expect_dtype(name, "indices", *t, DType::Int32);
    for (const View* t : {&weights, &probs}) expect_dtype(name, "probabilities", *t, DType::Float32);
    if (balance) {
      expect(balance_rows <= rows, name, "balance_rows must be at most rows");
      expect_numel(name, "balance", balance, 2 * experts);
      expect_dtype(name, "balance", balance, DType::Float32);
    }
    expect_floating(name, "logits", logits);
  }
};

struct RoutingBackward {
  static constexpr const char* name = "routing_backward";
  View d_logits;         // (rows, experts) any floating dtype
  View d_weights;        // (rows, top_k) float32
  View weights;          // (rows, top_k) float32
  View chosen;           // (rows, top_k) int32
  View probs;            // (rows, experts) float32
  OptionalView d_probs;  // (experts) float32: times its scale, added to the gradient of each counted row's probabilities
  int64_t rows, experts, top_k, balance_rows;
  float d_probs_scale;
  RZ_OPERANDS(d_logits, d_weights, weights, chosen, probs, d_probs, rows, experts, top_k, balance_rows, d_probs_scale)
  void check() const {
    expect_numel(name, "d_logits", d_logits, rows * experts);
    expect_numel(name, "d_weights", d_weights, rows * top_k);
    expect_numel(name, "weights", weights, rows * top_k);
    expect_numel(name, "chosen", chosen, rows * top_k);
    expect_numel(name, "probs", probs, rows * experts);
    for (const View* t : {&d_weights, &weights, &probs}) expect_dtype(name, "operand", *t, DType::Float32);
    expect_dtype(name, "chosen", chosen, DType::Int32);
    if (d_probs) {
      expect_numel(name, "d_probs", d_probs, experts);
      expect_dtype(name, "d_probs", d_probs, DType::Float32);
    }
    expect_floating(name, "d_logits", d_logits);
  }
};

// One matrix of each expert, (out, in) as in a Linear.
using ExpertViews = std::vector<View>;
using ExpertGradients = std::vector<OptionalView>;

template <class Matrices>
void expect_experts(const char* op, const char* what, const Matrices& w, const View& offsets, int64_t numel) {
  expect_numel(op, "offsets", offsets, static_cast<int64_t>(w.size()) + 1);
  for (const View& v : w)
    if (v) expect_numel(op, what, v, numel), expect_floating(op, what, v);
}

// y[row] = Σ weights · w2 (silu(w1 x) · (w3 x)) over the row's experts; GEMMs and sums over experts in float32.
struct ExpertsForward {
  static constexpr const char* name = "experts_forward";
  View y;                  // (rows, dim)
  OptionalView gate, up;   // (pairs, inner): w1 x and w3 x in group order, kept for backward
  View x;                  // (rows, dim)
  View weights;            // (rows, top_k) float32
  View order, offsets;     // of RoutingForward
  ExpertViews w1, w2, w3;  // (inner, dim), (dim, inner), (inner, dim)
  int64_t rows, dim, inner, top_k;
  RZ_OPERANDS(y, gate, up, x, weights, order, offsets, w1, w2, w3, rows, dim, inner, top_k)
  void check() const {
    expect_numel(name, "y", y, rows * dim);
    if (gate) expect_numel(name, "gate", gate, rows * top_k * inner);
    if (gate) expect_numel(name, "up", up, rows * top_k * inner);
    expect_numel(name, "x", x, rows * dim);
    expect_numel(name, "weights", weights, rows * top_k);
    expect_dtype(name, "weights", weights, DType::Float32);
    expect_numel(name, "order", order, rows * top_k);
    for (const View* t : {&order, &offsets}) expect_dtype(name, "indices", *t, DType::Int32);
    for (const ExpertViews* w : {&w1, &w2, &w3}) {
      expect_experts(name, "w", *w, offsets, inner * dim);
      for (const View& v : *w) expect_dtype(name, "w", v, x.dtype);
    }
    expect_floating(name, "x", x);
    expect_dtype(name, "y", y, x.dtype);
    if (gate) expect_dtype(name, "gate", gate, x.dtype), expect_dtype(name, "up", up, x.dtype);
  }
};

// `gate` and `up` are overwritten. A gradient that is absent is not made; without pairs it is zero.
struct ExpertsBackward {
  static constexpr const char* name = "experts_backward";
  OptionalView dx;                // (rows, dim)
  View d_weights;                 // (rows, top_k) float32
  ExpertGradients dw1, dw2, dw3;  // as w1, w2, w3; float32 or the compute dtype, each may be absent
  View dy;                        // (rows, dim)
  View x;                         // (rows, dim)
  View gate, up;                  // (pairs, inner)
  View weights;                   // (rows, top_k) float32
  View order, offsets;
  ExpertViews w1, w2, w3;
  std::vector<bool> accumulate;  // (3 · experts): of dw1, then dw2, then dw3
  int64_t rows, dim, inner, top_k;
  RZ_OPERANDS(dx, d_weights, dw1, dw2, dw3, dy, x, gate, up, weights, order, offsets, w1, w2, w3, accumulate, rows, dim,
              inner, top_k)
  void check() const {
    if (dx) expect_numel(name, "dx", dx, rows * dim), expect_dtype(name, "dx", dx, x.dtype);
    for (const View* t : {&dy, &x}) expect_numel(name, "operand", *t, rows * dim), expect_dtype(name, "operand", *t, x.dtype);
    for (const View* t : {&gate, &up})
      expect_numel(name, "kept product", *t, rows * top_k * inner), expect_dtype(name, "kept product", *t, x.dtype);
    for (const View* t : {&d_weights, &weights})
      expect_numel(name, "weights", *t, rows * top_k), expect_dtype(name, "weights", *t, DType::Float32);
    expect_numel(name, "order", order, rows * top_k);
    for (const View* t : {&order, &offsets}) expect_dtype(name, "indices", *t, DType::Int32);
    for (const ExpertViews* w : {&w1, &w2, &w3}) {
      expect_experts(name, "w", *w, offsets, inner * dim);
      for (const View& v : *w) expect_dtype(name, "w", v, x.dtype);
    }
    for (const ExpertGradients* dw : {&dw1, &dw2, &dw3}) expect_experts(name, "dw", *dw, offsets, inner * dim);
    expect(accumulate.size() == 3 * w1.size(), name, "accumulate must have a flag for every matrix");
    expect_floating(name, "x", x);
  }
};

// total = loss + coefficient · experts · Σ_e (pairs of e / n) (probability of e / n), over n = layers · rows: the auxiliary
// loss of the Switch Transformer over the concatenated layers.
struct BalancingLossForward {
  static constexpr const char* name = "balancing_loss_forward";
  View total;    // (1) float32
  View loss;     // (1) float32
  View balance;  // (layers, 2, experts) float32, of RoutingForward
  int64_t layers, experts, rows;
  double coefficient;
  RZ_OPERANDS(total, loss, balance, layers, experts, rows, coefficient)
  void check() const {
    expect_numel(name, "total", total, 1);
    expect_numel(name, "loss", loss, 1);
    expect_numel(name, "balance", balance, layers * 2 * experts);
    for (const View* t : {&total, &loss, &balance}) expect_dtype(name, "operand", *t, DType::Float32);
  }
};

// The gradient of one row's probability of each expert; it is the same for every row of every layer.
struct BalancingLossBackward {
  static constexpr const char* name = "balancing_loss_backward";
  View d_probs;  // (experts) float32
  View d_total;  // (1) float32
  View balance;  // (layers, 2, experts) float32
  int64_t layers, experts, rows;
  double coefficient;
  RZ_OPERANDS(d_probs, d_total, balance, layers, experts, rows, coefficient)
  void check() const {
    expect_numel(name, "d_probs", d_probs, experts);
    expect_numel(name, "d_total", d_total, 1);
    expect_numel(name, "balance", balance, layers * 2 * experts);
    for (const View* t : {&d_probs, &d_total, &balance}) expect_dtype(name, "operand", *t, DType::Float32);
  }
};

namespace cpu {
void run(const RoutingForward&);
void run(const RoutingBackward&);
void run(const ExpertsForward&);
void run(const ExpertsBackward&);
void run(const BalancingLossForward&);
void run(const BalancingLossBackward&);
}  // namespace cpu

namespace cuda {
void run(const RoutingForward&, CudaStream&);
void run(const RoutingBackward&, CudaStream&);
void run(const ExpertsForward&, CudaStream&);
void run(const ExpertsBackward&, CudaStream&);
void run(const BalancingLossForward&, CudaStream&);
void run(const BalancingLossBackward&, CudaStream&);
}  // namespace cuda
}  // namespace rz
