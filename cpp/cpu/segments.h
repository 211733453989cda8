// Ascending segments [begin, end) of a flat range: those elements decay, the others do not.
#pragma once
#include <algorithm>

#include "ops/op.h"

namespace rz::cpu {

// f(from, to, inside) over [begin, end), cut where segments begin and end; without segments all of it is inside.
template <class F>
void each_segment(const OptionalView& segments, int64_t begin, int64_t end, F&& f) {
  if (!segments) return f(begin, end, true);
  auto segment = segments.as<int64_t>();
  for (int64_t i = 0; i + 1 < segments.numel; i += 2) {
    int64_t from = std::clamp(segment[i], begin, end), to = std::clamp(segment[i + 1], begin, end);
    f(begin, from, false);
    f(from, to, true);
    begin = to;
  }
  f(begin, end, false);
}

}  // namespace rz::cpu
