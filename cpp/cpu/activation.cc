#include "ops/activation.h"

#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace rz::cpu {

constexpr int64_t kGrain = 1 << 13;

void run(const SwigluForward& op) {
  parallel_for(op.y.numel, kGrain, [&](int64_t i, int64_t end) {
    simd().swiglu_forward[index_of(op.y.dtype)](at(op.y, i), at(op.gate, i), at(op.up, i), end - i);
  });
}

void run(const SwigluBackward& op) {
  parallel_for(op.dy.numel, kGrain, [&](int64_t i, int64_t end) {
    simd().swiglu_backward[index_of(op.dy.dtype)](at(op.d_gate, i), at(op.d_up, i), at(op.dy, i), at(op.gate, i),
                                                  at(op.up, i), end - i);
  });
}

// Rows that make a grain together.
static int64_t rows_of_grain(int64_t inner) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, inner)); }

void run(const PackedSwigluForward& op) {
  const auto kernel = simd().swiglu_forward[index_of(op.y.dtype)];
  parallel_for(op.rows, rows_of_grain(op.inner), [&](int64_t r, int64_t end) {
    for (; r < end; ++r)
      kernel(at(op.y, r * op.inner), at(op.gate_up, 2 * r * op.inner), at(op.gate_up, (2 * r + 1) * op.inner),
             op.inner);
  });
}

void run(const PackedSwigluBackward& op) {
  const auto kernel = simd().swiglu_backward[index_of(op.dy.dtype)];
  parallel_for(op.rows, rows_of_grain(op.inner), [&](int64_t r, int64_t end) {
    for (; r < end; ++r) {
      const int64_t gate = 2 * r * op.inner, up = gate + op.inner;
      kernel(at(op.d_gate_up, gate), at(op.d_gate_up, up), at(op.dy, r * op.inner), at(op.gate_up, gate),
             at(op.gate_up, up), op.inner);
    }
  });
}

void run(const GeluForward& op) {
  const auto kernel = (op.tanh ? simd().gelu_tanh_forward : simd().gelu_forward)[index_of(op.x.dtype)];
  parallel_for(op.x.numel, kGrain, [&](int64_t i, int64_t end) {
    kernel(at(op.y, i), at(op.x, i), end - i);
  });
}

void run(const GeluBackward& op) {
  const auto kernel = (op.tanh ? simd().gelu_tanh_backward : simd().gelu_backward)[index_of(op.x.dtype)];
  parallel_for(op.x.numel, kGrain, [&](int64_t i, int64_t end) {
    kernel(at(op.dx, i), at(op.dy, i), at(op.x, i), end - i);
  });
}

}  // namespace rz::cpu
