// What the kernels of 8-bit optimizer state look codes up in, made from the 256 values of a map.
#pragma once
#include <bit>
#include <limits>

#include "cpu/simd/table.h"

namespace rz::cpu {

class QuantTables {
 public:
  explicit QuantTables(const float* values) : values_(values) {
    for (int i = 0; i < 255; ++i) middles_[i] = (values[i] + values[i + 1]) * 0.5f;
    middles_[255] = std::numeric_limits<float>::infinity();
    int code = 0;
    for (int32_t key = kQuantKeys; key-- > 0;) first_[kQuantKeys + key] = advance(code, -from(key + 1));
    code = 0;
    for (int32_t key = 0; key < kQuantKeys; ++key) first_[key] = advance(code, from(key));
  }
  QuantTables(const QuantTables&) = delete;
  QuantTables& operator=(const QuantTables&) = delete;

  QuantMap map() const { return {values_, middles_, first_}; }

 private:
  // The least magnitude of a key.
  static float from(int32_t key) {
    if (key == 0) return 0;
    if (key == kQuantKeys) return std::numeric_limits<float>::infinity();
    return std::bit_cast<float>(static_cast<uint32_t>(kQuantKeyBase + key - 1) << 16);
  }
  uint8_t advance(int& code, float x) const {
    while (x > middles_[code]) ++code;
    return static_cast<uint8_t>(code);
  }

  const float* values_;
  float middles_[256];
  uint8_t first_[2 * kQuantKeys];
};

}  // namespace rz::cpu
