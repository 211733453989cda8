// Weights of few bits: how their bytes lie, and the ops that write, cut, widen and multiply them.
#pragma once
#include <algorithm>
#include <array>

#include "ops/op.h"

namespace rz {

// The numbers are part of the addon's surface (src/tensor/quantized.ts).
enum class Scheme : int64_t { Nf4 = 0, Nf4Double = 1, Int8 = 2 };

// A quantised matrix, or a part of one, is a row of bytes: `lines` lines of neighbouring elements of the whole, each in pieces of
// `piece` elements that share a scale (the last piece of a line may be short). Sections begin at multiples of 16 bytes:
// - codes, in the order of elements: int8, or 4 bits, the first of two in the high half of its byte;
// - scales, one for each piece: float32, or with Nf4Double a code of a byte;
// - with Nf4Double what the scales' codes mean: for each line the scales of the blocks of 256 scales that it touches (float32), how
//   far into the first of these it begins (int32, in pieces), and the offset (float32).
// A whole NF4 matrix is one line of pieces of 64, a whole int8 matrix as many lines as rows, each of one piece.
struct QuantizedLayout {
  static constexpr int64_t kBlock = 64, kScalesPerGroup = 256;
  Scheme scheme;
  int64_t numel, lines, piece;
  int64_t line_length, pieces_per_line, pieces_per_group, groups_per_line;
  int64_t scales_at, groups_at, phases_at, offset_at, bytes;

  QuantizedLayout(int64_t scheme_number, int64_t numel_, int64_t lines_, int64_t piece_)
      : scheme(static_cast<Scheme>(scheme_number)), numel(numel_), lines(lines_), piece(piece_) {
    const bool known = scheme_number >= 0 && scheme_number <= 2;
    if (!known || lines < 1 || piece < 1 || numel % lines != 0)
      fail("ERR_ARGUMENT", "a quantised weight of scheme ", scheme_number, " cannot have ", numel, " elements in ", lines, " lines of pieces of ", piece);
    auto align = [](int64_t n) { return (n + 15) / 16 * 16; };
    line_length = numel / lines;
    pieces_per_line = (line_length + piece - 1) / piece;
    pieces_per_group = std::max<int64_t>(1, kScalesPerGroup * kBlock / piece);
    groups_per_line = pieces_per_line == 0 ? 0 : (pieces_per_line - 1 + pieces_per_group - 1) / pieces_per_group + 1;
    scales_at = align(scheme == Scheme::Int8 ? numel : (numel + 1) / 2);
    const int64_t scales = lines * pieces_per_line;
    groups_at = scales_at + align(is_double() ? scales : 4 * scales);
    phases_at = groups_at + (is_double() ? align(4 * lines * groups_per_line) : 0);
    offset_at = phases_at + (is_double() ? align(4 * lines) : 0);
    bytes = offset_at + (is_double() ? 16 : 0);
  }
  bool is_double() const { return scheme == Scheme::Nf4Double; }
};

// What the 8-bit codes of scales stand for: signed, with a decimal exponent of 0 to -6 and finer fractions where that is large. Made
// in the steps by which PyTorch makes them, which decide the last bits.
const std::array<float, 256>& scale_codes();

inline void expect_quantized(const char* op, const char* what, const View& v, const QuantizedLayout& layout) {
  expect_dtype(op, what, v, DType::UInt8);
  expect_numel(op, what, v, layout.bytes);
}

// q = the whole x in the layout of (lines, piece): 1 and 64 for NF4, rows and columns for int8. Codes and scales are those of
// bitsandbytes: the nearest of 16 values to x · (1 / absmax), the lower one of two as near.
struct QuantizeWeight {
  static constexpr const char* name = "quantize_weight";
  View q;  // uint8
  View x;  // float32
  int64_t scheme, lines, piece;
  RZ_OPERANDS(q, x, scheme, lines, piece)
  void check() const {
    const QuantizedLayout layout(scheme, x.numel, lines, piece);
    expect_quantized(name, "q", q, layout);
    expect_dtype(name, "x", x, DType::Float32);
    expect(layout.scheme == Scheme::Int8 ? layout.pieces_per_line <= 1 : lines == 1 && piece == QuantizedLayout::kBlock, name,
           "quantises whole weights");
  }
};

// Lines first_line … first_line + count of `part` become elements from, from + stride, … of `whole`. Their scales are those of the
// blocks of the whole that they lie in, once for each piece: every line begins and ends where a piece does.
struct SliceQuantized {
  static constexpr const char* name = "slice_quantized";
  View part;   // uint8, of part_numel elements in the layout of (lines, piece)
  View whole;  // uint8, of whole_numel elements in the layout of (whole_lines, whole_piece)
  int64_t scheme, part_numel, lines, piece, whole_numel, whole_lines, whole_piece, first_line, count, from, stride;
  RZ_OPERANDS(part, whole, scheme, part_numel, lines, piece, whole_numel, whole_lines, whole_piece, first_line, count, from, stride)
  void check() const {
    const QuantizedLayout to(scheme, part_numel, lines, piece), of(scheme, whole_numel, whole_lines, whole_piece);
    expect_quantized(name, "part", part, to);
    expect_quantized(name, "whole", whole, of);
    expect(first_line >= 0 && count >= 0 && first_line + count <= lines, name, "the part has no such lines");
    expect(from >= 0 && (count == 0 || from + (count - 1) * stride + to.line_length <= whole_numel), name, "the whole has no such elements");
    expect(to.scheme == Scheme::Int8 || (whole_piece % piece == 0 && from % piece == 0 && (count < 2 || stride % piece == 0)), name,
           "a piece must lie in one block of the whole");
  }
};

// y = what w stands for
struct DequantizeWeight {
  static constexpr const char* name = "dequantize_weight";
  View y;  // floating
  View w;  // uint8, of y.numel elements
  int64_t scheme, lines, piece;
  RZ_OPERANDS(y, w, scheme, lines, piece)
  void check() const {
    expect_floating(name, "y", y);
    expect_quantized(name, "w", w, QuantizedLayout(scheme, y.numel, lines, piece));
  }
};

// As LinearForward with what w stands for, in the dtype of x; that is never in memory as a whole.
struct QuantizedLinearForward {
  static constexpr const char* name = "quantized_linear_forward";
  View y;          // (rows, out_features); the compute dtype, or float32 for bfloat16 operands
  View x;          // (rows, in_features)
  View w;          // uint8, of out_features · in_features elements
  OptionalView b;  // (out_features)
  OptionalView residual;  // (rows, out_features), dtype of y; may be y
  int64_t rows, in_features, out_features, scheme, lines, piece;
  RZ_OPERANDS(y, x, w, b, residual, rows, in_features, out_features, scheme, lines, piece)
  void check() const {
    expect_numel(name, "y", y, rows * out_features);
    expect_numel(name, "x", x, rows * in_features);
    expect_quantized(name, "w", w, QuantizedLayout(scheme, out_features * in_features, lines, piece));
    if (b) expect_numel(name, "b", b, out_features);
    if (residual) {
      expect_numel(name, "residual", residual, y.numel);
      expect_dtype(name, "residual", residual, y.dtype);
    }
    expect_floating(name, "x", x);
  }
};

// As LinearBackwardInput with what w stands for, in the dtype of dy.
struct QuantizedLinearBackwardInput {
  static constexpr const char* name = "quantized_linear_backward_input";
  View dx;  // (rows, in_features)
  View dy;  // (rows, out_features)
  View w;   // uint8, of out_features · in_features elements
  OptionalView earlier;  // (rows, in_features), dtype of dx: the gradient from other uses of x; may be dx
  int64_t rows, in_features, out_features, scheme, lines, piece;
  RZ_OPERANDS(dx, dy, w, earlier, rows, in_features, out_features, scheme, lines, piece)
  void check() const {
    expect_numel(name, "dx", dx, rows * in_features);
    expect_numel(name, "dy", dy, rows * out_features);
    expect_quantized(name, "w", w, QuantizedLayout(scheme, out_features * in_features, lines, piece));
    expect_floating(name, "dy", dy);
    if (earlier) {
      expect_numel(name, "earlier", earlier, dx.numel);
      expect_dtype(name, "earlier", earlier, dx.dtype);
    }
  }
};

namespace cpu {
void run(const QuantizeWeight&);
void run(const SliceQuantized&);
void run(const DequantizeWeight&);
void run(const QuantizedLinearForward&);
void run(const QuantizedLinearBackwardInput&);
}  // namespace cpu

namespace cuda {
void run(const DequantizeWeight&, CudaStream&);
}  // namespace cuda

}  // namespace rz
