// cpp/cuda/mma.h for the emulator, which says what these are. Matrices are read before the lanes meet, as the hardware reads
// them before any lane goes on. A copy is made when it is waited for: until then its place is garbage.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <vector>

#include "block.h"
#include "core/dtype.h"
#include "cuda/device.h"

namespace rz::cuda {

// What all lanes bring, which is 16 bytes at most.
struct WarpWords {
  uint32_t of[kWarp][4];
};
inline WarpWords exchange_words(const uint32_t* words, int count) {
  const emulator::Lanes& lanes = emulator::warp_exchange(kFullMask, emulator::WarpCall::Shuffle, words, static_cast<size_t>(count) * 4);
  WarpWords all;
  static_assert(sizeof all == sizeof lanes.value);
  std::memcpy(&all, lanes.value, sizeof all);
  return all;
}

template <class T>
float half_of(uint32_t word, int which) {
  return to_float(T{static_cast<uint16_t>(word >> which * 16)});
}

template <class T>
void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t b[2] = {b0, b1};
  const WarpWords left = exchange_words(a, 4), right = exchange_words(b, 2);
  const int lane = emulator::lane_of_thread(), g = lane / 4, t = lane % 4;
  for (int e = 0; e < 4; ++e)
    for (int k = 0; k < 16; ++k) {
      const int half = k % 2, peer = k % 8 / 2, upper = k / 8;
      c[e] += half_of<T>(left.of[g * 4 + peer][upper * 2 + e / 2], half) * half_of<T>(right.of[(t * 2 + e % 2) * 4 + peer][upper], half);
    }
}

template <class T>
uint32_t pack(float low, float high) {
  return from_float<T>(low).bits | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
}

using SharedAddress = uintptr_t;
inline SharedAddress shared_address(const void* shared) { return reinterpret_cast<SharedAddress>(shared); }
inline void renew(SharedAddress&) {}

template <int kMatrices>
void load_matrices(uint32_t (&word)[kMatrices], SharedAddress row, bool transposed = false) {
  const int lane = emulator::lane_of_thread(), g = lane / 4, t = lane % 4;
  uint32_t own[4] = {};
  if (lane < kMatrices * 8) std::memcpy(own, reinterpret_cast<const void*>(row), sizeof own);
  const WarpWords all = exchange_words(own, 4);
  for (int m = 0; m < kMatrices; ++m) {
    if (!transposed) {
      word[m] = all.of[m * 8 + g][t];
    } else {
      const uint32_t low = all.of[m * 8 + t * 2][g / 2], high = all.of[m * 8 + t * 2 + 1][g / 2];
      const int shift = g % 2 * 16;
      word[m] = (low >> shift & 0xffff) | (high >> shift & 0xffff) << 16;
    }
  }
}
template <int kMatrices>
void load_matrices_transposed(uint32_t (&word)[kMatrices], SharedAddress row) {
  load_matrices(word, row, true);
}

// Copies that threads of the running block have asked for, each thread its own groups, oldest first; the last group is open.
struct AsyncCopy {
  SharedAddress to;
  const void* from;
  size_t bytes;
  bool valid;
};
inline std::deque<std::vector<AsyncCopy>>& groups_of_thread() {
  static thread_local std::vector<std::deque<std::vector<AsyncCopy>>> of_thread(1024);
  const auto& at = emulator::position;
  auto& groups = of_thread[(at.thread.z * at.block_size.y + at.thread.y) * at.block_size.x + at.thread.x];
  if (groups.empty()) groups.emplace_back();
  return groups;
}
inline void copy_async(SharedAddress to, const void* from, size_t bytes, bool valid) {
  std::memset(reinterpret_cast<void*>(to), 0xff, bytes);
  groups_of_thread().back().push_back({to, from, bytes, valid});
}
inline void copy_async_16(SharedAddress to, const void* from, bool valid) { copy_async(to, from, 16, valid); }
inline void copy_async_4(SharedAddress to, const void* from, bool valid) { copy_async(to, from, 4, valid); }
inline void copy_async_commit() { groups_of_thread().emplace_back(); }
template <int kPending>
void copy_async_wait() {
  auto& groups = groups_of_thread();
  for (; groups.size() > static_cast<size_t>(kPending) + 1; groups.pop_front())
    for (const AsyncCopy& copy : groups.front()) {
      if (copy.valid) std::memcpy(reinterpret_cast<void*>(copy.to), copy.from, copy.bytes);
      else std::memset(reinterpret_cast<void*>(copy.to), 0, copy.bytes);
    }
}

inline float exp2_approximate(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.0f : y;
}

}  // namespace rz::cuda
