// What quantised weights stand for: eight elements a thread. Compiled without fused multiply-adds: the bits are the CPU's.
#include <cstring>

#include "cuda/over_groups.h"
#include "ops/nf4.h"
#include "ops/quantized.h"

namespace rz::cuda {

// The tables lie in the kernel's parameters, which all threads read from one cache.
template <class T>
struct WidenMap {
  T* y;
  const uint8_t* bytes;
  QuantizedLayout layout;
  bool aligned, words;  // whether y begins at 16 bytes, and the stored ones at 4
  float nf4[16], scale_codes[256];

  // Number `i` of those that begin at byte `at`.
  template <class Word>
  __device__ Word word(int64_t at, int64_t i) const {
    const uint8_t* from = bytes + at + 4 * i;
    if (words) return *reinterpret_cast<const Word*>(from);
    uint32_t bits = 0;
    for (int k = 3; k >= 0; --k) bits = bits << 8 | from[k];
    return __builtin_bit_cast(Word, bits);
  }

  // Of piece `piece` of a line.
  __device__ float scale(int64_t line, int64_t piece) const {
    const int64_t at = line * layout.pieces_per_line + piece;
    if (layout.scheme != Scheme::Nf4Double) return word<float>(layout.scales_at, at);
    const int64_t phase = word<int32_t>(layout.phases_at, line);
    const int64_t group = line * layout.groups_per_line + (phase + piece) / layout.pieces_per_group;
    return scale_codes[bytes[layout.scales_at + at]] * word<float>(layout.groups_at, group) + word<float>(layout.offset_at, 0);
  }

  __device__ float value(int64_t i, float scale) const {
    if (layout.scheme == Scheme::Int8) return static_cast<float>(static_cast<int8_t>(bytes[i])) * scale * 7.874015718698502e-3f;
    const uint8_t pair = bytes[i / 2];
    return nf4[i % 2 == 0 ? pair >> 4 : pair & 15] * scale;
  }

  __device__ void operator()(int64_t first, int64_t count) const {
    float values[kGroup];
    int64_t line = first / layout.line_length, within = first - line * layout.line_length;
    int64_t piece = within / layout.piece, into = within - piece * layout.piece;
    float own = scale(line, piece);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      if (i >= count) break;
      values[i] = value(first + i, own);
      ++within, ++into;
      if (i + 1 >= count || (into < layout.piece && within < layout.line_length)) continue;
      ++piece, into = 0;
      if (within == layout.line_length) ++line, within = 0, piece = 0;
      own = scale(line, piece);
    }
    store_group(y + first, values, count, aligned);
  }
};

void run(const DequantizeWeight& op, CudaStream& stream) {
  const QuantizedLayout layout(op.scheme, op.y.numel, op.lines, op.piece);
  with_floating(op.y.dtype, [&](auto t) {
    using T = decltype(t);
    WidenMap<T> map{op.y.as<T>(), op.w.as<uint8_t>(), layout, is_aligned(op.y.data), reinterpret_cast<uintptr_t>(op.w.data) % 4 == 0, {}, {}};
    std::memcpy(map.nf4, kNf4, sizeof map.nf4);
    std::memcpy(map.scale_codes, scale_codes().data(), sizeof map.scale_codes);
    over_groups(op.y.numel, stream, map);
  });
}

}  // namespace rz::cuda
