// Element types, and the scalar conversions that every kernel agrees on (round to nearest even).
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>

namespace rz {

// The numbers are part of the addon's surface (src/tensor/dtype.ts).
enum class DType : uint8_t { Float32 = 0, BFloat16 = 1, Float16 = 2, Int64 = 3, Int32 = 4, UInt8 = 5 };

constexpr int64_t size_of(DType t) {
  switch (t) {
    case DType::Int64: return 8;
    case DType::Float32:
    case DType::Int32: return 4;
    case DType::BFloat16:
    case DType::Float16: return 2;
    case DType::UInt8: return 1;
  }
  return 0;
}

constexpr bool is_floating(DType t) { return t <= DType::Float16; }

constexpr const char* name_of(DType t) {
  constexpr const char* names[] = {"float32", "bfloat16", "float16", "int64", "int32", "uint8"};
  return names[static_cast<int>(t)];
}

// Raw 16-bit patterns, so that kernels convert them explicitly.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

inline float to_float(float x) { return x; }

inline float to_float(bf16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

inline bf16 to_bf16(float x) {
  uint32_t u = std::bit_cast<uint32_t>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((u >> 16) | 0x40)};  // keep NaN quiet
  return {static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1)) >> 16)};
}

inline float to_float(f16 h) {
  uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000) << 16, rest = h.bits & 0x7fff;
  if (rest >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000u | ((rest & 0x3ff) << 13));
  if (rest >= 0x400) return std::bit_cast<float>(sign | ((rest + 0x1c000) << 13));
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(static_cast<float>(rest) * 0x1p-24f));
}

inline f16 to_f16(float x) {
  uint32_t u = std::bit_cast<uint32_t>(x), sign = (u >> 16) & 0x8000, a = u & 0x7fffffffu;
  if (a > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00)};
  if (a >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00)};
  if (a < 0x38800000u) {  // subnormal: let the adder round
    float shifted = std::bit_cast<float>(a) + 0.5f;
    return {static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u))};
  }
  uint32_t rounded = a + 0xfffu + ((a >> 13) & 1);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

template <class T>
T from_float(float x);
template <>
inline float from_float<float>(float x) { return x; }
template <>
inline bf16 from_float<bf16>(float x) { return to_bf16(x); }
template <>
inline f16 from_float<f16>(float x) { return to_f16(x); }

}  // namespace rz
