// Which elements of a flat range decay: those of ascending segments [begin, end).
#pragma once
#include "cuda/device.h"
#include "cuda/vec.h"

namespace rz::cuda {

// Which of the eight elements from i lie in one of the segments: bit j for element i + j.
static __device__ unsigned decaying(const int64_t* segments, int count, int64_t i) {
  int low = 0, high = count;  // the first segment that ends behind i
  while (low < high) {
    const int middle = (low + high) / 2;
    if (segments[2 * middle + 1] <= i) low = middle + 1;
    else high = middle;
  }
  unsigned bits = 0;
  for (int j = 0; j < kGroup && low < count; ++j) {
    while (low < count && segments[2 * low + 1] <= i + j) ++low;
    if (low < count && segments[2 * low] <= i + j) bits |= 1u << j;
  }
  return bits;
}

}  // namespace rz::cuda
