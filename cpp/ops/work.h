// What an op has to do at least, for a profile: its arithmetic, the memory that its operands span, its sizes. work_of is called
// where the op runs, so contents of small operands (borders of sequences, labels) may be read.
#pragma once
#include <algorithm>

#include "core/task_log.h"
#include "ops/activation.h"
#include "ops/adafactor.h"
#include "ops/adamw.h"
#include "ops/adamw8bit.h"
#include "ops/attention.h"
#include "ops/cross_entropy.h"
#include "ops/dropout.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/layer_norm.h"
#include "ops/linear.h"
#include "ops/moe.h"
#include "ops/qkv.h"
#include "ops/quantized.h"
#include "ops/random.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"
#include "ops/sgd.h"

namespace rz {

namespace detail {
inline double span(std::initializer_list<View> views) {
  double bytes = 0;
  for (const View& v : views)
    if (v) bytes += static_cast<double>(v.numel * size_of(v.dtype));
  return bytes;
}

template <class... Sizes>
double product(Sizes... sizes) {
  return (static_cast<double>(sizes) * ...);
}

// Pairs of a query and a key that it sees, as cpp/ops/attention.h defines them.
inline double visible_pairs(const View& cu_q, const View& cu_k, int64_t sequences, int64_t window) {
  double pairs = 0;
  const int32_t *q = cu_q.as<int32_t>(), *k = cu_k.as<int32_t>();
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t queries = q[s + 1] - q[s], keys = k[s + 1] - k[s];
    if (window <= 0) {
      pairs += static_cast<double>(queries) * static_cast<double>(2 * keys - queries + 1) / 2;
      continue;
    }
    for (int64_t i = 0; i < queries; ++i) pairs += static_cast<double>(std::min(window, keys - queries + 1 + i));
  }
  return pairs;
}

inline int64_t labelled(const View& labels) {
  const auto* label = labels.as<int64_t>();
  return std::count_if(label, label + labels.numel, [](int64_t l) { return l >= 0; });
}
}  // namespace detail

// Ops without an overload below are timed only.
template <class Op>
Work work_of(const Op&) {
  return {};
}

inline Work work_of(const LinearForward& op) {
  return {2 * detail::product(op.rows, op.in_features, op.out_features), 0, "rows in_features out_features", {op.rows, op.in_features, op.out_features},
          op.x.dtype};
}
inline Work work_of(const LinearBackwardInput& op) {
  return {2 * detail::product(op.rows, op.in_features, op.out_features), 0, "rows in_features out_features", {op.rows, op.in_features, op.out_features},
          op.dy.dtype};
}
inline Work work_of(const LinearBackwardWeight& op) {
  return {2 * detail::product(op.rows, op.in_features, op.out_features), 0, "rows in_features out_features", {op.rows, op.in_features, op.out_features},
          op.x.dtype};
}
inline Work work_of(const QuantizedLinearForward& op) {
  return {2 * detail::product(op.rows, op.in_features, op.out_features), 0, "rows in_features out_features", {op.rows, op.in_features, op.out_features},
          op.x.dtype};
}
inline Work work_of(const QuantizedLinearBackwardInput& op) {
  return {2 * detail::product(op.rows, op.in_features, op.out_features), 0, "rows in_features out_features", {op.rows, op.in_features, op.out_features},
          op.dy.dtype};
}
inline Work work_of(const DequantizeWeight& op) { return {0, detail::span({op.y, op.w}), "elements", {op.y.numel}, op.y.dtype}; }
inline Work work_of(const QuantizeWeight& op) { return {0, detail::span({op.q, op.x}), "elements", {op.x.numel}, op.x.dtype}; }

// Rows without a label are not computed.
inline Work work_of(const LinearCrossEntropy& op) {
  const int64_t rows = detail::labelled(op.labels), gemms = 1 + (op.dx ? 1 : 0) + (op.dw ? 1 : 0);
  return {2 * detail::product(gemms, rows, op.dim, op.vocab), 0, "labels dim vocab", {rows, op.dim, op.vocab}, op.x.dtype};
}

// Two GEMMs of the visible pairs, and five in backward.
inline Work work_of(const AttentionForward& op) {
  const double pairs = detail::visible_pairs(op.cu_q, op.cu_k, op.sequences, op.window);
  return {4 * pairs * detail::product(op.heads, op.head_dim), 0, "rows sequences heads head_dim",
          {op.q_rows, op.sequences, op.heads, op.head_dim}, op.q.dtype};
}
inline Work work_of(const AttentionBackward& op) {
  const double pairs = detail::visible_pairs(op.cu, op.cu, op.sequences, op.window);
  return {10 * pairs * detail::product(op.heads, op.head_dim), 0, "rows sequences heads head_dim",
          {op.rows, op.sequences, op.heads, op.head_dim}, op.q.dtype};
}

// Three GEMMs of each choice of a row; in backward those of gradients that are wanted are not told apart.
inline Work work_of(const ExpertsForward& op) {
  return {6 * detail::product(op.rows, op.top_k, op.dim, op.inner), 0, "rows dim inner top_k",
          {op.rows, op.dim, op.inner, op.top_k}, op.x.dtype};
}
inline Work work_of(const ExpertsBackward& op) { return {0, 0, "rows dim inner top_k", {op.rows, op.dim, op.inner, op.top_k}, op.x.dtype}; }

inline Work work_of(const RmsNormForward& op) {
  return {0, detail::span({op.y, op.x, op.w}), "rows dim", {op.rows, op.dim}, op.x.dtype};
}
inline Work work_of(const RmsNormBackward& op) {
  return {0, detail::span({op.dx, op.dw, op.dy, op.x, op.w, op.earlier}), "rows dim", {op.rows, op.dim}, op.x.dtype};
}
inline Work work_of(const LayerNormForward& op) {
  return {0, detail::span({op.y, op.x, op.w, op.b}), "rows dim", {op.rows, op.dim}, op.x.dtype};
}
inline Work work_of(const LayerNormBackward& op) {
  return {0, detail::span({op.dx, op.dw, op.db, op.dy, op.x, op.w}), "rows dim", {op.rows, op.dim}, op.x.dtype};
}
inline Work work_of(const SwigluForward& op) { return {0, detail::span({op.y, op.gate, op.up}), "elements", {op.y.numel}, op.y.dtype}; }
inline Work work_of(const SwigluBackward& op) {
  return {0, detail::span({op.d_gate, op.d_up, op.dy, op.gate, op.up}), "elements", {op.dy.numel}, op.dy.dtype};
}
inline Work work_of(const PackedSwigluForward& op) {
  return {0, detail::span({op.y, op.gate_up}), "rows inner", {op.rows, op.inner}, op.y.dtype};
}
inline Work work_of(const PackedSwigluBackward& op) {
  return {0, detail::span({op.d_gate_up, op.dy, op.gate_up}), "rows inner", {op.rows, op.inner}, op.dy.dtype};
}
inline Work work_of(const GeluForward& op) { return {0, detail::span({op.y, op.x}), "elements", {op.y.numel}, op.y.dtype}; }
inline Work work_of(const GeluBackward& op) { return {0, detail::span({op.dx, op.dy, op.x}), "elements", {op.dy.numel}, op.dy.dtype}; }
inline Work work_of(const Rope& op) {
  return {0, detail::span({op.y, op.x, op.cos, op.sin}), "rows heads head_dim", {op.rows, op.heads, op.head_dim}, op.x.dtype};
}
inline Work work_of(const SplitRope& op) {
  return {0, 2 * detail::span({op.qkv}) + detail::span({op.cos, op.sin}), "rows heads kv_heads head_dim",
          {op.rows, op.heads, op.kv_heads, op.head_dim}, op.qkv.dtype};
}
inline Work work_of(const MergeRope& op) {
  return {0, 2 * detail::span({op.qkv}) + detail::span({op.cos, op.sin}), "rows heads kv_heads head_dim",
          {op.rows, op.heads, op.kv_heads, op.head_dim}, op.qkv.dtype};
}
inline Work work_of(const SplitQkv& op) {
  return {0, 2 * detail::span({op.qkv}), "rows heads head_dim", {op.rows, op.heads, op.head_dim}, op.qkv.dtype};
}
inline Work work_of(const MergeQkv& op) {
  return {0, 2 * detail::span({op.qkv}), "rows heads head_dim", {op.rows, op.heads, op.head_dim}, op.qkv.dtype};
}
inline Work work_of(const EmbeddingForward& op) {
  return {0, 2 * detail::span({op.out}), "rows dim", {op.rows, op.dim}, op.out.dtype};
}
inline Work work_of(const EmbeddingBackward& op) { return {0, 0, "rows vocab dim", {op.rows, op.vocab, op.dim}, op.d_out.dtype}; }

inline Work work_of(const Fill& op) { return {0, detail::span({op.x}), "elements", {op.x.numel}, op.x.dtype}; }
inline Work work_of(const Copy& op) { return {0, detail::span({op.dst, op.src}), "elements", {op.dst.numel}, op.dst.dtype}; }
inline Work work_of(const CopyRows& op) {
  return {0, detail::product(op.rows, op.cols, size_of(op.dst.dtype) + size_of(op.src.dtype)), "rows cols", {op.rows, op.cols}, op.dst.dtype};
}
inline Work work_of(const Add& op) { return {0, detail::span({op.y, op.a, op.b}), "elements", {op.y.numel}, op.y.dtype}; }
inline Work work_of(const Scale& op) {
  return {0, detail::span({op.y, op.x, op.accumulate ? op.y : View{}}), "elements", {op.y.numel}, op.y.dtype};
}
inline Work work_of(const SumSquares& op) { return {0, detail::span({op.x}), "elements", {op.x.numel}, op.x.dtype}; }
inline Work work_of(const Dropout& op) { return {0, detail::span({op.y, op.x}), "elements", {op.y.numel}, op.y.dtype}; }
inline Work work_of(const RandomFill& op) { return {0, detail::span({op.x}), "elements", {op.x.numel}, op.x.dtype}; }
// Parameter and moments are read and written.
inline Work work_of(const AdamW& op) {
  return {0, 2 * detail::span({op.param, op.exp_avg, op.exp_avg_sq}) + detail::span({op.grad, op.copy}), "elements", {op.param.numel}, op.param.dtype};
}
inline Work work_of(const Adamw8bit& op) {
  return {0, 2 * detail::span({op.param, op.exp_avg, op.exp_avg_sq}) + detail::span({op.grad, op.copy}), "elements", {op.param.numel}, op.param.dtype};
}
inline Work work_of(const Sgd& op) {
  return {0, 2 * detail::span({op.param, op.momentum_buffer}) + detail::span({op.grad, op.copy}), "elements", {op.param.numel}, op.param.dtype};
}
inline Work work_of(const AdafactorSums& op) { return {0, 2 * detail::span({op.grad}), "elements", {op.grad.numel}, op.grad.dtype}; }
inline Work work_of(const AdafactorNorm& op) { return {0, detail::span({op.grad, op.variance}), "elements", {op.grad.numel}, op.grad.dtype}; }
inline Work work_of(const AdafactorStep& op) {
  return {0, 2 * detail::span({op.param}) + detail::span({op.grad, op.variance, op.copy}), "elements", {op.param.numel}, op.param.dtype};
}

// On a device nobody reads the contents of operands: what depends on them is unknown.
template <class Op>
Work work_on_device(const Op& op) {
  return work_of(op);
}
inline Work work_on_device(const LinearCrossEntropy& op) { return {0, 0, "rows dim vocab", {op.rows, op.dim, op.vocab}, op.x.dtype}; }
inline Work work_on_device(const AttentionForward& op) {
  return {0, 0, "rows sequences heads head_dim", {op.q_rows, op.sequences, op.heads, op.head_dim}, op.q.dtype};
}
inline Work work_on_device(const AttentionBackward& op) {
  return {0, 0, "rows sequences heads head_dim", {op.rows, op.sequences, op.heads, op.head_dim}, op.q.dtype};
}

}  // namespace rz
