#include "check.h"
#include "ops/activation.h"
#include "ops/elementwise.h"

static const DType kFloating[] = {DType::Float32, DType::BFloat16, DType::Float16};

static void test_moves() {
  for (DType to : kFloating)
    for (DType from : kFloating) {
      const std::string name = begin(label("copy", to, {}) + " from " + rz::name_of(from));
      Buffer x = random_buffer(from, 1037), y(to, 1037);
      execute(rz::Copy{y.view(), x.view()});
      report(name, y.values() == Buffer(to, x.values()).values());
      for (DType third : kFloating) {
        Buffer b = random_buffer(third, 1037), s(to, 1037);
        Values want = x.values(), right = b.values();
        for (size_t i = 0; i < want.size(); ++i) want[i] = static_cast<float>(want[i]) + static_cast<float>(right[i]);
        execute(rz::Add{s.view(), x.view(), b.view()});
        report(label("add", to, {}), s.values() == Buffer(to, want).values());
      }
      Buffer factor(DType::Float32, Values{-0.5});
      for (bool accumulate : {false, true}) {
        Buffer s = random_buffer(to, 2049), z = random_buffer(from, 2049);
        Values want = s.values(), in = z.values();
        for (size_t i = 0; i < want.size(); ++i) want[i] = (accumulate ? want[i] : 0) + in[i] * 3.0 * -0.5;
        execute(rz::Scale{s.view(), z.view(), factor.view(), 3.0f, accumulate});
        expect_close(label("scale", to, {accumulate}) + " from " + rz::name_of(from), s, want);
      }
    }
  // Every half-precision and bfloat16 pattern survives, and special values round as they should.
  const double inf = INFINITY;
  for (DType t : {DType::BFloat16, DType::Float16}) {
    Buffer all(t, 65536), wide(DType::Float32, 65536), back(t, 65536);
    for (int i = 0; i < 65536; ++i) reinterpret_cast<uint16_t*>(all.data())[i] = static_cast<uint16_t>(i);
    execute(rz::Copy{wide.view(), all.view()});
    execute(rz::Copy{back.view(), wide.view()});
    bool same = true;
    for (int i = 0; i < 65536; ++i) {
      float f = reinterpret_cast<float*>(wide.data())[i];
      uint16_t bits = reinterpret_cast<uint16_t*>(back.data())[i];
      float want = static_cast<float>(read(t, all.data() + 2 * i));
      same &= std::isnan(want) ? std::isnan(f) && std::isnan(read(t, back.data() + 2 * i)) : f == want && bits == i;
    }
    report(label("every pattern", t, {}), same);
    Values odd = {inf, -inf, NAN, 65504.0, 65519.99, 65520.0, 1e-7, 2.98e-8, 2.9803e-8, 6.1e-5, 1.00048828125, 1e30};
    odd.resize(64, 0.3);
    Buffer x(DType::Float32, odd), y(t, 64);
    execute(rz::Copy{y.view(), x.view()});
    expect_close(label("special values", t, {}), y.values(), Buffer(t, odd).values(), 0);
  }
  for (DType t : {DType::Float32, DType::BFloat16, DType::Float16, DType::Int64, DType::Int32, DType::UInt8}) {
    Buffer x(t, 1001);
    execute(rz::Fill{x.view(), 3.0});
    report(label("fill", t, {}), x.values() == Values(1001, 3.0));
  }
}

static void test_copy_rows() {
  for (DType to : kFloating)
    for (DType from : kFloating)
      for (auto [rows, cols] : {std::pair<int64_t, int64_t>{1, 1}, {7, 33}, {40, 1500}, {5, 0}, {0, 5}}) {
        const std::string name = begin(label("copy_rows", to, {rows, cols}) + " from " + rz::name_of(from));
        const int64_t d_pitch = cols + 3, s_pitch = cols + 5, d_offset = 2, s_offset = 7;
        Buffer dst = random_buffer(to, d_offset + rows * d_pitch), src = random_buffer(from, s_offset + rows * s_pitch);
        Values want = dst.values(), moved = Buffer(to, src.values()).values();
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t c = 0; c < cols; ++c) want[d_offset + r * d_pitch + c] = moved[s_offset + r * s_pitch + c];
        rz::CopyRows op{dst.view(), src.view(), rows, cols, d_offset, d_pitch, s_offset, s_pitch};
        op.check();
        expect_thread_independent(name, dst, [&] { execute(op); });
        report(name, dst.values() == want);
      }
  Buffer ids(DType::Int64, Values{1, 2, 3, 4, 5, 6}), out(DType::Int64, Values(4));
  execute(rz::CopyRows{out.view(), ids.view(), 2, 2, 0, 2, 1, 3});
  report("copy_rows of int64", out.values() == Values{2, 3, 5, 6});

  auto refused = [&](int64_t rows, int64_t cols, int64_t d_offset, int64_t d_pitch, int64_t s_offset, int64_t s_pitch) {
    try {
      rz::CopyRows{out.view(), ids.view(), rows, cols, d_offset, d_pitch, s_offset, s_pitch}.check();
    } catch (const rz::Error&) {
      return true;
    }
    return false;
  };
  report("copy_rows at its bounds", !refused(2, 2, 0, 2, 0, 4) && !refused(2, 2, 0, 2, 1, 3) && !refused(1, 4, 0, 4, 2, 4));
  report("copy_rows refuses what lies outside",
         refused(2, 2, 1, 2, 0, 3) && refused(2, 2, 0, 2, 1, 4) && refused(2, 2, -1, 2, 0, 3) && refused(1, 5, 0, 5, 0, 5) &&
             refused(2, 2, 0, 1, 0, 3) && refused(-1, 2, 0, 2, 0, 3) && refused(int64_t{1} << 53, 2, 0, int64_t{1} << 53, 0, 3));
}

static void test_reductions() {
  for (DType t : kFloating) {
    const std::string name = begin(label("sum_squares", t, {}));
    Buffer x = random_buffer(t, 100003), out(DType::Float32, Values{2.0});
    double want = 2.0;
    for (double v : x.values()) want += v * v;
    execute(rz::SumSquares{out.view(), x.view(), true});
    expect_close(name, out.values(), {want}, 1e-7);
    expect_thread_independent(name, out, [&] { execute(rz::SumSquares{out.view(), x.view(), false}); });
  }
  Buffer norm(DType::Float32, 1), factor(DType::Float32, 1), sum(DType::Float32, Values{16.0});
  execute(rz::ClipFactor{norm.view(), factor.view(), sum.view(), 1.0f});
  expect_close("clip_factor", {norm.values()[0], factor.values()[0]}, {4.0, 1.0 / (4.0 + 1e-6)}, 1e-7);
  execute(rz::ClipFactor{norm.view(), factor.view(), sum.view(), 10.0f});
  report("clip_factor below the bound", factor.values()[0] == 1.0);
}

static void test_activations() {
  for (DType t : kFloating) {
    for (int64_t n : {1, 15, 1037}) {
      begin(label("activations", t, {n}));
      Values wide = random_values(n, 3.0);
      if (n > 1000)
        for (int64_t i = 0; i < 200; ++i) wide[i] = -100.0 + static_cast<double>(i);
      Buffer gate(t, wide), up = random_buffer(t, n), dy = random_buffer(t, n);
      Buffer y(t, n), d_gate(t, n), d_up(t, n), g(t, n), dg(t, n);
      Values gv = gate.values(), uv = up.values(), dv = dy.values();
      Values y_want(n), dg_want(n), du_want(n), gelu(n), d_gelu(n);
      for (int64_t i = 0; i < n; ++i) {
        double s = 1 / (1 + std::exp(-gv[i])), cdf = 0.5 * std::erfc(-gv[i] / std::sqrt(2.0));
        y_want[i] = gv[i] * s * uv[i];
        du_want[i] = dv[i] * gv[i] * s;
        dg_want[i] = dv[i] * uv[i] * s * (1 + gv[i] * (1 - s));
        gelu[i] = gv[i] * cdf;
        d_gelu[i] = dv[i] * (cdf + gv[i] * std::exp(-gv[i] * gv[i] / 2) / std::sqrt(2 * M_PI));
      }
      execute(rz::SwigluForward{y.view(), gate.view(), up.view()});
      execute(rz::SwigluBackward{d_gate.view(), d_up.view(), dy.view(), gate.view(), up.view()});
      execute(rz::GeluForward{g.view(), gate.view(), false});
      execute(rz::GeluBackward{dg.view(), dy.view(), gate.view(), false});
      expect_close(label("swiglu", t, {n}), y, y_want);
      expect_close(label("swiglu d_gate", t, {n}), d_gate, dg_want);
      expect_close(label("swiglu d_up", t, {n}), d_up, du_want);
      expect_close(label("gelu", t, {n}), g, gelu, std::sqrt(n));
      expect_close(label("gelu dx", t, {n}), dg, d_gelu, std::sqrt(n));
      Buffer h(t, n), dh(t, n);
      for (int64_t i = 0; i < n; ++i) {
        const double c = std::sqrt(2 / M_PI), v = gv[i], th = std::tanh(c * (v + 0.044715 * v * v * v));
        gelu[i] = 0.5 * v * (1 + th);
        d_gelu[i] = dv[i] * 0.5 * (1 + th + v * (1 - th * th) * c * (1 + 3 * 0.044715 * v * v));
      }
      execute(rz::GeluForward{h.view(), gate.view(), true});
      execute(rz::GeluBackward{dh.view(), dy.view(), gate.view(), true});
      expect_close(label("gelu by tanh", t, {n}), h, gelu, std::sqrt(n));
      expect_close(label("gelu by tanh dx", t, {n}), dh, d_gelu, std::sqrt(n));
    }
  }
  // One by one: sigmoid (through SwiGLU) and erf (through GELU) over their whole range.
  double worst_silu = 0, worst_erf = 0, worst_tanh = 0;
  Values grid;
  for (double x = -20; x <= 20; x += 0.00037) grid.push_back(x);
  auto n = static_cast<int64_t>(grid.size());
  Buffer x(DType::Float32, grid), one(DType::Float32, Values(grid.size(), 1.0)), y(DType::Float32, n),
      g(DType::Float32, n), h(DType::Float32, n);
  execute(rz::SwigluForward{y.view(), x.view(), one.view()});
  execute(rz::GeluForward{g.view(), x.view(), false});
  execute(rz::GeluForward{h.view(), x.view(), true});
  Values xv = x.values(), yv = y.values(), ev = g.values(), hv = h.values();
  for (int64_t i = 0; i < n; ++i) {
    double silu = xv[i] / (1 + std::exp(-xv[i])), gelu = 0.5 * xv[i] * (1 + std::erf(xv[i] / std::sqrt(2.0)));
    double th = 0.5 * xv[i] * (1 + std::tanh(std::sqrt(2 / M_PI) * (xv[i] + 0.044715 * xv[i] * xv[i] * xv[i])));
    worst_tanh = std::max(worst_tanh, std::abs(hv[i] - th) / std::max(std::abs(xv[i]), 1e-3));
    worst_silu = std::max(worst_silu, std::abs(yv[i] - silu) / std::max(std::abs(silu), 1e-30));
    worst_erf = std::max(worst_erf, std::abs(ev[i] - gelu) / std::max(std::abs(xv[i]), 1e-3));
  }
  report("silu relative error", worst_silu < 5e-7, std::to_string(worst_silu * 1e7) + "e-7");
  report("gelu by tanh error over |x|", worst_tanh < 1.5e-7, std::to_string(worst_tanh * 1e7) + "e-7");
  report("gelu error over |x|", worst_erf < 1.5e-7, std::to_string(worst_erf * 1e7) + "e-7");
}
// Gate and up side by side in each row give the bits that they give apart.
static void test_packed_swiglu() {
  for (DType t : kFloating)
    for (const auto& [rows, inner] : {std::pair<int64_t, int64_t>{1, 1}, {9, 37}, {33, 64}, {3, 2056}}) {
      const std::string name = begin(label("packed_swiglu", t, {rows, inner}));
      Buffer packed(t, random_values(2 * rows * inner, 3.0)), dy = random_buffer(t, rows * inner);
      Values both = packed.values(), halves[2] = {Values(rows * inner), Values(rows * inner)};
      for (int64_t i = 0; i < 2 * rows * inner; ++i)
        halves[i / inner % 2][i / (2 * inner) * inner + i % inner] = both[i];
      Buffer gate(t, halves[0]), up(t, halves[1]), want(t, rows * inner), d_gate(t, rows * inner), d_up(t, rows * inner);
      execute(rz::SwigluForward{want.view(), gate.view(), up.view()});
      execute(rz::SwigluBackward{d_gate.view(), d_up.view(), dy.view(), gate.view(), up.view()});
      Buffer y(t, rows * inner), d_packed(t, 2 * rows * inner);
      rz::PackedSwigluForward forward{y.view(), packed.view(), rows, inner};
      rz::PackedSwigluBackward backward{d_packed.view(), dy.view(), packed.view(), rows, inner};
      execute(forward);
      execute(backward);
      const Values dg = d_gate.values(), du = d_up.values();
      Values d_want(2 * rows * inner);
      for (int64_t i = 0; i < rows * inner; ++i) {
        const int64_t at = i / inner * 2 * inner + i % inner;
        d_want[at] = dg[i];
        d_want[at + inner] = du[i];
      }
      expect_close(name, y, want.values());
      expect_close(name + " backward", d_packed, d_want);
      expect_thread_independent(name, y, [&] { execute(forward); });
      expect_thread_independent(name + " backward", d_packed, [&] { execute(backward); });
    }
}
static Test moves(test_moves), copies(test_copy_rows), reductions(test_reductions), activations(test_activations), packed(test_packed_swiglu);
