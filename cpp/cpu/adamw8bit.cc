#include "ops/adamw8bit.h"

#include <algorithm>
#include <cmath>

#include "cpu/parallel.h"
#include "cpu/quant_map.h"
#include "cpu/simd.h"

namespace rz::cpu {
namespace {

struct Maps {
  QuantTables m, v;
  QuantMaps maps{m.map(), v.map()};

  template <class Op>
  explicit Maps(const Op& op) : m(op.signed_map.template as<float>()), v(op.unsigned_map.template as<float>()) {}
};

template <class Op>
Adamw8bitRun run_of(const Op& op, int64_t r, int64_t begin) {
  const auto* bounds = op.runs.template as<int64_t>();
  return {op.exp_avg.template as<uint8_t>() + begin, op.exp_avg_sq.template as<uint8_t>() + begin, op.exp_avg_scale.template as<float>() + r,
          op.exp_avg_sq_scale.template as<float>() + r, bounds[2 * r + 1] - begin};
}

template <class Op>
AdamWScalars moment_scalars(const Op& op) {
  AdamWScalars s{};
  s.one_minus_beta1 = static_cast<float>(1.0 - op.beta1);
  s.beta2 = static_cast<float>(op.beta2);
  s.one_minus_beta2 = static_cast<float>(1.0 - op.beta2);
  s.grad_scale = op.grad_scale ? *op.grad_scale.template as<float>() : 1.0f;
  return s;
}

constexpr int64_t kGrain = 64;  // runs

}  // namespace

void run(const Adamw8bitPeaks& op) {
  const Maps maps(op);
  const AdamWScalars scalars = moment_scalars(op);
  const auto *cut = op.cut.as<int64_t>(), *bounds = op.runs.as<int64_t>();
  float *m_peaks = op.peaks.as<float>(), *v_peaks = m_peaks + op.peaks.numel / 2;
  auto kernel = simd().adamw8bit_peaks[index_of(op.grad.dtype)];
  parallel_for(op.cut.numel / 2, kGrain, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const int64_t r = cut[2 * i], slot = cut[2 * i + 1], begin = bounds[2 * r];
      kernel(m_peaks + slot, v_peaks + slot, at(op.grad, begin), run_of(op, r, begin), scalars, maps.maps);
    }
  });
}

void run(const Adamw8bit& op) {
  const Maps maps(op);
  AdamWScalars scalars = moment_scalars(op);
  const double bias1 = 1.0 - std::pow(op.beta1, static_cast<double>(op.step));
  const double bias2 = 1.0 - std::pow(op.beta2, static_cast<double>(op.step));
  scalars.decay = static_cast<float>(1.0 - op.lr * op.weight_decay);
  scalars.sqrt_bias2 = static_cast<float>(std::sqrt(bias2));
  scalars.eps = static_cast<float>(op.eps);
  scalars.step_size = static_cast<float>(op.lr / bias1);
  const auto *cut = op.cut.as<int64_t>(), *bounds = op.runs.as<int64_t>();
  const int64_t cuts = op.cut.numel / 2;
  const float *m_peaks = op.peaks.as<float>(), *v_peaks = op.peaks ? m_peaks + op.peaks.numel / 2 : nullptr;
  auto kernel = simd().adamw8bit[index_of(op.param.dtype)][index_of(op.grad.dtype)];
  parallel_for(op.runs.numel / 2, kGrain, [&](int64_t from, int64_t to) {
    int64_t next = 0;  // the first cut run from here on
    for (int64_t high = cuts; next < high;) {
      const int64_t middle = (next + high) / 2;
      if (cut[2 * middle] < from) next = middle + 1;
      else high = middle;
    }
    for (int64_t r = from; r < to; ++r) {
      const int64_t begin = bounds[2 * r];
      const Adamw8bitRun run = run_of(op, r, begin);
      const bool is_cut = next < cuts && cut[2 * next] == r;
      const int64_t slot = is_cut ? cut[2 * next++ + 1] : 0;
      kernel(at(op.param, begin), at(op.grad, begin), run, is_cut ? m_peaks + slot : nullptr, is_cut ? v_peaks + slot : nullptr, scalars, maps.maps);
      if (op.copy) simd().from_f32[index_of(op.copy.dtype)](at(op.copy, begin), op.param.as<float>() + begin, run.n);
    }
  });
}

}  // namespace rz::cpu
