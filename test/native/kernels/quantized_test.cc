#include "check.h"

// Quantised, cut into parts and widened again: what each part stands for are elements of the whole, of which each is the nearest of
// the values that its scale gives.
static void test_quantized(int64_t scheme, int64_t rows, int64_t columns, int64_t parts, bool by_columns) {
  const std::string name = begin(label("quantized", DType::Float32, {scheme, rows, columns, parts, by_columns}));
  const bool int8 = scheme == 2;
  const int64_t numel = rows * columns, lines = int8 ? rows : 1, piece = int8 ? columns : 64;
  const rz::QuantizedLayout of(scheme, numel, lines, piece);
  Buffer x = random_buffer(DType::Float32, numel), q(DType::UInt8, of.bytes), y(DType::Float32, numel);
  execute(rz::QuantizeWeight{q.view(), x.view(), scheme, lines, piece});
  execute(rz::DequantizeWeight{y.view(), q.view(), scheme, lines, piece});
  const Values xv = x.values(), whole = y.values();
  bool near = true;
  for (int64_t first = 0; first < numel; first += piece) {
    const int64_t end = std::min(numel, first + piece);
    double top = 0;
    for (int64_t i = first; i < end; ++i) top = std::max(top, std::fabs(xv[i]));
    // Half of the widest step, and what 8-bit scales are wrong by.
    for (int64_t i = first; i < end; ++i) near &= std::fabs(whole[i] - xv[i]) <= top * (int8 ? 0.51 / 127 : scheme == 0 ? 0.1521 : 0.2);
  }
  report(name + " is near", near);
  for (DType t : {DType::BFloat16, DType::Float16}) {
    Buffer narrow(t, numel), want(t, whole);
    execute(rz::DequantizeWeight{narrow.view(), q.view(), scheme, lines, piece});
    report(name + " in " + rz::name_of(t), narrow.same_bits(want));
  }
  const int64_t part_rows = by_columns ? rows : rows / parts, part_columns = by_columns ? columns / parts : columns;
  const int64_t length = by_columns || int8 ? part_columns : part_rows * columns, count = part_rows * part_columns / length;
  int64_t shared = int8 ? length : 64;
  if (!int8)
    while (length % shared != 0 || columns % shared != 0) shared /= 2;
  const rz::QuantizedLayout to(scheme, part_rows * part_columns, count, shared);
  for (int64_t p = 0; p < parts; ++p) {
    const int64_t from = by_columns ? p * part_columns : p * part_rows * columns;
    Buffer part(DType::UInt8, to.bytes), got(DType::Float32, to.numel);
    execute(rz::SliceQuantized{part.view(), q.view(), scheme, to.numel, count, shared, numel, lines, piece, 0, count, from, columns});
    execute(rz::DequantizeWeight{got.view(), part.view(), scheme, count, shared});
    Values want;
    for (int64_t r = 0; r < part_rows; ++r)
      for (int64_t c = 0; c < part_columns; ++c) want.push_back(whole[from + r * columns + c]);
    report(name + " part", got.same_bits(Buffer(DType::Float32, want)));
  }
}

// Tiles of a weight give the bits of the whole weight: several bands of the GEMM, and its remainder.
static void test_linear(DType t, int64_t rows, int64_t in, int64_t out) {
  const std::string name = begin(label("quantized linear", t, {rows, in, out}));
  const rz::QuantizedLayout layout(1, out * in, 1, 64);
  Buffer values = random_buffer(DType::Float32, out * in, 0.1), q(DType::UInt8, layout.bytes), w(t, out * in);
  Buffer x = random_buffer(t, rows * in), b = random_buffer(t, out), dy = random_buffer(t, rows * out), onto = random_buffer(t, rows * out);
  execute(rz::QuantizeWeight{q.view(), values.view(), 1, 1, 64});
  execute(rz::DequantizeWeight{w.view(), q.view(), 1, 1, 64});
  Buffer y(t, rows * out), y_want(t, rows * out), dx(t, rows * in), dx_want(t, rows * in);
  rz::cpu::run(rz::LinearForward{y_want.view(), x.view(), w.view(), b.view(), onto.view(), rows, in, out});
  rz::cpu::run(rz::QuantizedLinearForward{y.view(), x.view(), q.view(), b.view(), onto.view(), rows, in, out, 1, 1, 64});
  report(name + " forward", y.same_bits(y_want));
  rz::cpu::run(rz::LinearBackwardInput{dx_want.view(), dy.view(), w.view(), {}, rows, in, out});
  rz::cpu::run(rz::QuantizedLinearBackwardInput{dx.view(), dy.view(), q.view(), {}, rows, in, out, 1, 1, 64});
  report(name + " dx", dx.same_bits(dx_want));
}

static void test_all() {
  for (DType t : {DType::Float32, DType::BFloat16, DType::Float16}) {
    test_linear(t, 20, 1100, 1500);
    test_linear(t, 1, 2048, 600);
  }
  for (int64_t scheme : {0, 1, 2})
    for (bool by_columns : {false, true}) {
      test_quantized(scheme, 8, 64, 2, by_columns);
      test_quantized(scheme, 6, 27, 3, by_columns);
      test_quantized(scheme, 300, 96, 4, by_columns);
      test_quantized(scheme, 40, 1376, 2, by_columns);
    }
}

static Test registered(test_all);
