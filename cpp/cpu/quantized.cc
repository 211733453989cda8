// Quantising, cutting and widening of weights. Compiled without fused multiply-adds, as cpu/simd/quantize.cc.
#include "cpu/quantized.h"

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/matmul.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"
#include "ops/nf4.h"

namespace rz::cpu {
namespace {

constexpr int64_t kGrain = 1 << 15;

// The mean in the order in which PyTorch adds on one thread: eight lanes, four rows at once, a cascade of four levels.
float mean_of(const float* x, int64_t n) {
  constexpr int kLanes = 8, kRows = 4, kLevels = 4;
  using Rows = std::array<std::array<float, kLanes>, kRows>;
  auto add = [](Rows& to, const float* from) {
    for (int r = 0; r < kRows; ++r)
      for (int l = 0; l < kLanes; ++l) to[r][l] += from[r * kLanes + l];
  };
  if (n < kLanes) {  // without lanes: the rest of four rows goes to the first
    float first = n > 0 ? x[0] : 0.0f;
    for (int64_t i = n < kRows ? 1 : kRows; i < n; ++i) first += x[i];
    for (int64_t i = 1; n >= kRows && i < kRows; ++i) first += x[i];
    return first / static_cast<float>(n);
  }
  const int64_t vectors = n / kLanes, steps = vectors / kRows;
  const int64_t bits = steps <= 2 ? 1 : std::bit_width(static_cast<uint64_t>(steps) - 1);
  const int64_t power = std::max<int64_t>(4, bits / kLevels), step = int64_t{1} << power;
  std::array<Rows, kLevels> sums{};
  int64_t i = 0;
  while (i + step <= steps) {
    for (int64_t j = 0; j < step; ++j, ++i) add(sums[0], x + i * kRows * kLanes);
    for (int level = 1; level < kLevels; ++level) {
      add(sums[level], sums[level - 1][0].data());
      sums[level - 1] = {};
      if ((i & ((step - 1) << (level * power))) != 0) break;
    }
  }
  for (; i < steps; ++i) add(sums[0], x + i * kRows * kLanes);
  for (int level = 1; level < kLevels; ++level) add(sums[0], sums[level][0].data());
  auto& [first, second, third, fourth] = sums[0];
  for (int64_t v = steps * kRows; v < vectors; ++v)
    for (int l = 0; l < kLanes; ++l) first[l] += x[v * kLanes + l];
  for (const auto* row : {&second, &third, &fourth})
    for (int l = 0; l < kLanes; ++l) first[l] += (*row)[l];
  float sum = 0;
  for (int64_t k = vectors * kLanes; k < n; ++k) sum += x[k];
  for (float lane : first) sum += lane;
  return sum / static_cast<float>(n);
}

// Scales in 8 bits: what is left of them without their mean, in groups of 256.
void quantize_scales(uint8_t* q, const QuantizedLayout& layout, float* absmax) {
  const auto& map = scale_codes();
  std::array<float, 255> middle;
  for (size_t i = 0; i < 255; ++i) middle[i] = (map[i] + map[i + 1]) / 2;
  const int64_t n = layout.pieces_per_line, group = layout.pieces_per_group;
  const float offset = n > 0 ? mean_of(absmax, n) : 0.0f;
  auto* groups = reinterpret_cast<float*>(q + layout.groups_at);
  std::fill(q + layout.groups_at, q + layout.bytes, uint8_t{0});
  parallel_for((n + group - 1) / group, 16, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      const int64_t first = g * group, last = std::min(n, first + group);
      float top = 0;
      for (int64_t i = first; i < last; ++i) top = std::max(top, std::fabs(absmax[i] -= offset));
      groups[g] = top;
      const float inverse = 1.0f / std::max(top, 1e-38f);
      for (int64_t i = first; i < last; ++i) {
        const float scaled = std::clamp(absmax[i] * inverse, -1.0f, 1.0f);
        q[layout.scales_at + i] = static_cast<uint8_t>(std::lower_bound(middle.begin(), middle.end(), scaled) - middle.begin());
      }
    }
  });
  std::memcpy(q + layout.offset_at, &offset, 4);
}

// Scales of pieces first … first + n of a line.
void scales_of(float* to, const QuantizedMatrix& w, int64_t line, int64_t first, int64_t n) {
  const QuantizedLayout& l = w.layout;
  const int64_t at = line * l.pieces_per_line + first;
  if (!l.is_double()) {
    std::memcpy(to, w.bytes + l.scales_at + at * 4, static_cast<size_t>(n) * 4);
    return;
  }
  const auto& map = scale_codes();
  const auto* groups = reinterpret_cast<const float*>(w.bytes + l.groups_at) + line * l.groups_per_line;
  const int64_t phase = reinterpret_cast<const int32_t*>(w.bytes + l.phases_at)[line];
  const float offset = *reinterpret_cast<const float*>(w.bytes + l.offset_at);
  const uint8_t* codes = w.bytes + l.scales_at + at;
  for (int64_t i = 0; i < n; ++i) to[i] = map[codes[i]] * groups[(phase + first + i) / l.pieces_per_group] + offset;
}

void put_code(uint8_t* codes, int64_t i, int code) {
  uint8_t& byte = codes[i / 2];
  byte = static_cast<uint8_t>(i % 2 == 0 ? (byte & 15) | code << 4 : (byte & 0xf0) | code);
}

int code_at(const uint8_t* codes, int64_t i) { return i % 2 == 0 ? codes[i / 2] >> 4 : codes[i / 2] & 15; }

void copy_codes(uint8_t* to, int64_t at, const uint8_t* from, int64_t start, int64_t n) {
  int64_t i = 0;
  if (at % 2 != 0 && n > 0) put_code(to, at, code_at(from, start)), i = 1;
  if ((start + i) % 2 == 0) {
    std::memcpy(to + (at + i) / 2, from + (start + i) / 2, static_cast<size_t>((n - i) / 2));
    i += (n - i) / 2 * 2;
  } else
    for (; i + 1 < n; i += 2)
      to[(at + i) / 2] = static_cast<uint8_t>(code_at(from, start + i) << 4 | code_at(from, start + i + 1));
  if (i < n) put_code(to, at + i, code_at(from, start + i));
}

// A line of `to`, from element `start` of the whole.
void slice_line(const QuantizedLayout& to, uint8_t* part, int64_t line, const QuantizedLayout& of, const uint8_t* whole, int64_t start) {
  if (to.scheme == Scheme::Int8) {
    std::memcpy(part + line * to.line_length, whole + start, static_cast<size_t>(to.line_length));
    std::memcpy(part + to.scales_at + line * 4, whole + of.scales_at + start / of.line_length * 4, 4);
    return;
  }
  copy_codes(part, line * to.line_length, whole, start, to.line_length);
  const int64_t at = line * to.pieces_per_line, width = to.is_double() ? 1 : 4;
  for (int64_t p = 0; p < to.pieces_per_line; ++p)
    std::memcpy(part + to.scales_at + (at + p) * width, whole + of.scales_at + (start + p * to.piece) / of.piece * width, static_cast<size_t>(width));
  if (!to.is_double()) return;
  const int64_t group = of.pieces_per_group * of.piece;
  const auto phase = static_cast<int32_t>(start % group / to.piece);
  const int64_t touched = to.pieces_per_line == 0 ? 0 : (phase + to.pieces_per_line - 1) / to.pieces_per_group + 1;
  std::memcpy(part + to.phases_at + line * 4, &phase, 4);
  std::memcpy(part + to.groups_at + line * to.groups_per_line * 4, whole + of.groups_at + start / group * 4, static_cast<size_t>(touched) * 4);
}

}  // namespace

void run(const QuantizeWeight& op) {
  const QuantizedLayout layout(op.scheme, op.x.numel, op.lines, op.piece);
  auto* q = op.q.as<uint8_t>();
  const auto* x = op.x.as<float>();
  std::fill(q + (layout.scales_at >= 16 ? layout.scales_at - 16 : 0), q + layout.bytes, uint8_t{0});  // what lies between sections
  auto* scales = reinterpret_cast<float*>(q + layout.scales_at);
  if (layout.scheme == Scheme::Int8) {
    parallel_for(layout.lines, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, layout.line_length)), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        scales[row] = simd().quantize_int8(reinterpret_cast<int8_t*>(q) + row * layout.line_length, x + row * layout.line_length, layout.line_length);
    });
    return;
  }
  Scratch scratch(layout.is_double() ? layout.pieces_per_line * 4 : 0);
  float* absmax = layout.is_double() ? scratch.as() : scales;
  parallel_for(op.x.numel, kGrain, [&](int64_t begin, int64_t end) {
    simd().quantize_nf4(q + begin / 2, absmax + begin / layout.piece, x + begin, end - begin, layout.piece);
  });
  if (layout.is_double()) quantize_scales(q, layout, absmax);
}

void run(const SliceQuantized& op) {
  const QuantizedLayout to(op.scheme, op.part_numel, op.lines, op.piece), of(op.scheme, op.whole_numel, op.whole_lines, op.whole_piece);
  auto* part = op.part.as<uint8_t>();
  const auto* whole = op.whole.as<uint8_t>();
  // Two lines of an odd length share a byte.
  const int64_t grain = to.line_length % 2 != 0 ? op.count : kGrain / std::max<int64_t>(1, to.line_length);
  parallel_for(op.count, std::max<int64_t>(1, grain), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) slice_line(to, part, op.first_line + i, of, whole, op.from + i * op.stride);
  });
  if (to.is_double()) std::memcpy(part + to.offset_at, whole + of.offset_at, 4);
}

void QuantizedMatrix::widen(void* to, DType t, int64_t first, int64_t n) const {
  constexpr int64_t kPieces = 64;
  float scales[kPieces];
  auto* y = static_cast<char*>(to);
  while (n > 0) {
    const int64_t line = first / layout.line_length, within = first % layout.line_length, piece = within / layout.piece, into = within % layout.piece;
    const int64_t count = std::min({n, layout.line_length - within, kPieces * layout.piece - into});
    scales_of(scales, *this, line, piece, (into + count + layout.piece - 1) / layout.piece);
    if (layout.scheme == Scheme::Int8)
      simd().dequantize_int8[index_of(t)](y, reinterpret_cast<const int8_t*>(bytes) + first, count, scales[0]);
    else
      simd().dequantize_nf4[index_of(t)](y, bytes, first, count, layout.piece, into, scales);
    y += count * size_of(t);
    first += count;
    n -= count;
  }
}

void QuantizedMatrix::widen_tile(void* to, DType t, int64_t row, int64_t column, int64_t rows, int64_t tile_columns) const {
  parallel_for(rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, tile_columns)), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      widen(static_cast<char*>(to) + r * tile_columns * size_of(t), t, (row + r) * columns + column, tile_columns);
  });
}

void QuantizedMatrix::widen_tile_to_f32(float* to, DType t, int64_t row, int64_t column, int64_t rows, int64_t tile_columns) const {
  if (t == DType::Float32) return widen_tile(to, t, row, column, rows, tile_columns);
  parallel_for(rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, tile_columns)), [&](int64_t begin, int64_t end) {
    constexpr int64_t kChunk = 1024;
    uint16_t narrow[kChunk];
    for (int64_t r = begin; r < end; ++r)
      for (int64_t c = 0; c < tile_columns; c += kChunk) {
        const int64_t n = std::min(kChunk, tile_columns - c);
        widen(narrow, t, (row + r) * columns + column + c, n);
        simd().to_f32[index_of(t)](to + r * tile_columns + c, narrow, n);
      }
  });
}

void run(const DequantizeWeight& op) {
  const QuantizedMatrix w(op.w, op.scheme, op.lines, op.piece, 1, op.y.numel);
  parallel_for(op.y.numel, kGrain, [&](int64_t begin, int64_t end) { w.widen(at(op.y, begin), op.y.dtype, begin, end - begin); });
}

}  // namespace rz::cpu
