#include <algorithm>

#include "check.h"
#include "ops/adamw8bit.h"

static Values dynamic_map(bool is_signed) {
  Values map{0, 1};
  for (int decade = 0; decade < 7; ++decade) {
    const int cells = (1 << decade) * (is_signed ? 1 : 2);
    for (int cell = 0; cell < cells; ++cell) {
      const double middle = std::pow(10.0, decade - 6) * (0.1 + 0.9 * (cell + 0.5) / cells);
      map.push_back(middle);
      if (is_signed) map.push_back(-middle);
    }
  }
  std::sort(map.begin(), map.end());
  return map;
}

static double distance_to_map(double x, const Buffer& map) {
  double least = 1e9;
  for (double value : map.values()) least = std::min(least, std::abs(value - x));
  return least;
}

struct State {
  Buffer p, m, v, m_scale, v_scale;
};

static State fresh(DType pt, const Values& params, int64_t runs) {
  const auto n = static_cast<int64_t>(params.size());
  return {Buffer(pt, params), Buffer(DType::UInt8, Values(n)), Buffer(DType::UInt8, Values(n)), Buffer(DType::Float32, Values(runs)),
          Buffer(DType::Float32, Values(runs))};
}

constexpr double kLr = 1e-2, kBeta1 = 0.9, kBeta2 = 0.99, kEps = 1e-8, kDecay = 0.1;

// Each step, from the state that the kernel left, against double precision: parameters, scales, and that codes are the nearest.
static void test_steps(DType pt, DType gt) {
  const std::string name = begin(label("adamw8bit", pt, {}) + " " + rz::name_of(gt));
  const int64_t n = 1003;
  const Values bounds{0, 256, 256, 300, 310, 566, 566, 600, 600, 601, 747, 1003};
  const auto runs = static_cast<int64_t>(bounds.size() / 2);
  Buffer run_bounds(DType::Int64, bounds), signed_map(DType::Float32, dynamic_map(true)), unsigned_map(DType::Float32, dynamic_map(false));
  Buffer factor(DType::Float32, Values{0.25}), copy(DType::BFloat16, Values(n));
  const bool copies = pt == DType::Float32;
  State s = fresh(pt, random_buffer(pt, n).values(), runs);
  const Values m_map = signed_map.values(), v_map = unsigned_map.values();
  for (int64_t step = 1; step <= 4; ++step) {
    Buffer g = random_buffer(gt, n);
    Values gv = g.values(), want = s.p.values(), m = s.m.values(), v = s.v.values(), m_scale = s.m_scale.values(), v_scale = s.v_scale.values();
    execute(rz::Adamw8bit{s.p.view(), g.view(), s.m.view(), s.v.view(), s.m_scale.view(), s.v_scale.view(), run_bounds.view(), signed_map.view(),
                          unsigned_map.view(), View{}, View{}, factor.view(), copies ? copy.view() : View{}, kLr, kBeta1, kBeta2, kEps, kDecay, step});
    const Values codes_m = s.m.values(), codes_v = s.v.values(), new_m_scale = s.m_scale.values(), new_v_scale = s.v_scale.values();
    Values m_peaks(runs), v_peaks(runs);
    double worst = 0;
    for (int64_t r = 0; r < runs; ++r) {
      for (int pass = 0; pass < 2; ++pass)
        for (auto i = static_cast<int64_t>(bounds[2 * r]); i < static_cast<int64_t>(bounds[2 * r + 1]); ++i) {
          const double grad = gv[i] * 0.25, mean = kBeta1 * m_map[m[i]] * m_scale[r] + (1 - kBeta1) * grad;
          const double square = kBeta2 * v_map[v[i]] * v_scale[r] + (1 - kBeta2) * grad * grad;
          if (pass == 0) {
            m_peaks[r] = std::max(m_peaks[r], std::abs(mean)), v_peaks[r] = std::max(v_peaks[r], square);
            const double denominator = std::sqrt(square) / std::sqrt(1 - std::pow(kBeta2, step)) + kEps;
            want[i] = want[i] * (1 - kLr * kDecay) - kLr / (1 - std::pow(kBeta1, step)) * mean / denominator;
          } else {
            const double x = mean / m_peaks[r], y = square / v_peaks[r];
            worst = std::max(worst, std::abs(m_map[codes_m[i]] - x) - distance_to_map(x, signed_map));
            worst = std::max(worst, std::abs(v_map[codes_v[i]] - y) - distance_to_map(y, unsigned_map));
          }
        }
    }
    expect_close(name, s.p.values(), want, pt == DType::Float32 ? 1e-6 : 1e-2);
    expect_close(name + " scales of exp_avg", new_m_scale, m_peaks, 1e-6);
    expect_close(name + " scales of exp_avg_sq", new_v_scale, v_peaks, 1e-6);
    report(name + ": codes are the nearest", worst < 1e-6, std::to_string(worst));
    if (copies) {
      const Values rounded = Buffer(DType::BFloat16, s.p.values()).values(), got = copy.values();
      bool same = true;
      for (int64_t r = 0; r < runs; ++r)
        for (auto i = static_cast<int64_t>(bounds[2 * r]); i < static_cast<int64_t>(bounds[2 * r + 1]); ++i) same &= rounded[i] == got[i];
      report(name + ": the copy is the rounded parameter", same);
    }
  }
}

// A block that is cut in three gives the bits of the whole, once the peaks of its runs are everybody's.
static void test_cut(DType gt) {
  const std::string name = begin(label("adamw8bit cut", gt, {}));
  const int64_t n = 512;
  Buffer signed_map(DType::Float32, dynamic_map(true)), unsigned_map(DType::Float32, dynamic_map(false));
  Buffer whole_bounds(DType::Int64, Values{0, 256, 256, 512}), cut_bounds(DType::Int64, Values{0, 256, 256, 263, 263, 420, 420, 512});
  Buffer cut(DType::Int64, Values{1, 0, 2, 1, 3, 2});
  const Values params = random_buffer(DType::Float32, n).values();
  State whole = fresh(DType::Float32, params, 2), parts = fresh(DType::Float32, params, 4);
  for (int64_t step = 1; step <= 4; ++step) {
    Buffer g = random_buffer(gt, n), peaks(DType::Float32, Values(6));
    execute(rz::Adamw8bit{whole.p.view(), g.view(), whole.m.view(), whole.v.view(), whole.m_scale.view(), whole.v_scale.view(),
                          whole_bounds.view(), signed_map.view(), unsigned_map.view(), View{}, View{}, View{}, View{}, kLr, kBeta1, kBeta2, kEps,
                          kDecay, step});
    execute(rz::Adamw8bitPeaks{peaks.view(), cut.view(), g.view(), parts.m.view(), parts.v.view(), parts.m_scale.view(), parts.v_scale.view(),
                               cut_bounds.view(), signed_map.view(), unsigned_map.view(), View{}, kBeta1, kBeta2});
    const Values own = peaks.values();
    const double m_peak = std::max({own[0], own[1], own[2]}), v_peak = std::max({own[3], own[4], own[5]});
    Buffer agreed(DType::Float32, Values{m_peak, m_peak, m_peak, v_peak, v_peak, v_peak});
    execute(rz::Adamw8bit{parts.p.view(), g.view(), parts.m.view(), parts.v.view(), parts.m_scale.view(), parts.v_scale.view(), cut_bounds.view(),
                          signed_map.view(), unsigned_map.view(), cut.view(), agreed.view(), View{}, View{}, kLr, kBeta1, kBeta2, kEps, kDecay,
                          step});
    report(name + ": parameters", whole.p.same_bits(parts.p));
    report(name + ": codes", whole.m.same_bits(parts.m) && whole.v.same_bits(parts.v));
    const Values a = whole.m_scale.values(), b = parts.m_scale.values();
    report(name + ": scales", a[0] == b[0] && a[1] == b[1] && a[1] == b[2] && a[1] == b[3]);
  }
}

static void test_all() {
  test_steps(DType::Float32, DType::Float32);
  test_steps(DType::Float32, DType::BFloat16);
  test_steps(DType::BFloat16, DType::BFloat16);
  test_cut(DType::Float32);
  test_cut(DType::BFloat16);
}
static Test registered(test_all);
