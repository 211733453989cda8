// Element conversion between floating dtypes through float32, rounding to nearest even; a copy where they are equal.
#pragma once
#include <cstring>

#include "core/dtype.h"

namespace rz::files {

template <class To, class From>
void convert_elements(void* to, const void* from, int64_t numel) {
  To* out = static_cast<To*>(to);
  const From* in = static_cast<const From*>(from);
  for (int64_t i = 0; i < numel; ++i) out[i] = from_float<To>(to_float(in[i]));
}

template <class To>
void convert_to(void* to, const void* from, DType from_dtype, int64_t numel) {
  if (from_dtype == DType::Float32) convert_elements<To, float>(to, from, numel);
  if (from_dtype == DType::BFloat16) convert_elements<To, bf16>(to, from, numel);
  if (from_dtype == DType::Float16) convert_elements<To, f16>(to, from, numel);
}

// Equal dtypes, or both floating.
inline void convert(void* to, DType to_dtype, const void* from, DType from_dtype, int64_t numel) {
  if (to_dtype == from_dtype) {
    std::memcpy(to, from, static_cast<size_t>(numel * size_of(to_dtype)));
  } else if (to_dtype == DType::Float32) {
    convert_to<float>(to, from, from_dtype, numel);
  } else if (to_dtype == DType::BFloat16) {
    convert_to<bf16>(to, from, from_dtype, numel);
  } else {
    convert_to<f16>(to, from, from_dtype, numel);
  }
}

}  // namespace rz::files
