#include "ops/quantized.h"

#include <cmath>

namespace rz {

static std::array<float, 256> make_scale_codes() {
  std::array<float, 256> values{};
  size_t count = 0;
  values[count++] = 0.0f;
  values[count++] = 1.0f;
  for (int i = 0; i < 7; ++i) {
    const int steps = (1 << i) + 1;
    const float begin = 0.1f, end = 1.0f, step = (end - begin) / static_cast<float>(steps - 1);
    auto edge = [&](int k) {
      return k < steps / 2 ? std::fma(step, static_cast<float>(k), begin) : std::fma(-step, static_cast<float>(steps - k - 1), end);
    };
    const auto power = static_cast<float>(std::pow(10.0, i - 6));
    for (int k = 0; k + 1 < steps; ++k) {
      const float value = power * (edge(k) + edge(k + 1)) / 2.0f;
      values[count++] = value;
      values[count++] = -value;
    }
  }
  std::sort(values.begin(), values.end());
  return values;
}

const std::array<float, 256>& scale_codes() {
  static const std::array<float, 256> codes = make_scale_codes();
  return codes;
}

}  // namespace rz
