// cpp/cuda/hopper.h for the emulator, which says what these are.
#pragma once
#include <type_traits>

#include "core/dtype.h"
#include "cuda/device.h"
#include "cuda/driver.h"
#include "cuda/mma.h"
#include "cuda/tensor_map.h"
#include "sm90.h"

namespace rz::cuda {

inline bool has_hopper(const cudaDeviceProp& device) { return driver().cuTensorMapEncodeTiled && device.major == 9 && device.minor == 0; }

constexpr int kWarpgroup = 128;
inline int own_warpgroup() { return __shfl_sync(kFullMask, static_cast<int>(threadIdx.x) / kWarpgroup, 0); }

inline unsigned char* swizzled_shared() { return dynamic_shared<unsigned char>(); }

inline void barrier_init(SharedAddress barrier, int count) { emulator::barrier_init(barrier, count); }
inline void barriers_initialised() { emulator::barriers_initialised(); }
inline void barrier_arrive(SharedAddress barrier) { emulator::barrier_arrive(barrier, 0); }
inline void barrier_expect(SharedAddress barrier, int bytes) { emulator::barrier_arrive(barrier, bytes); }
inline void barrier_wait(SharedAddress barrier, int parity) { emulator::barrier_wait(barrier, parity); }
inline void barrier_watch(SharedAddress barrier, int parity, uint64_t) { emulator::barrier_wait(barrier, parity); }
inline void store_zeros(SharedAddress to) { emulator::store_zeros(to); }
inline void shared_written() { emulator::shared_written(); }
inline void arrive_of(int number, int threads) { emulator::arrive_of(number, threads); }
inline void sync_threads_of(int number, int threads) { emulator::sync_threads_of(number, threads); }

inline void copy_box(SharedAddress to, const TensorMap& map, SharedAddress barrier, int column, int head, int row) {
  emulator::copy_box(to, &map, barrier, column, head, row);
}

inline void wgmma_fence() { emulator::wgmma_fence(); }
inline void wgmma_commit() { emulator::wgmma_commit(); }
template <int N>
void settle(float (&)[N][4]) {}
template <int kPending, int... N>
void wgmma_wait(float (&... d)[N][4]) {
  emulator::wgmma_wait(kPending, {d[0]...});
}
template <class T, bool kTransposed, int N>
void wgmma(float (&d)[N][4], uint64_t a, uint64_t b, bool add) {
  static_assert(N == 8 || N == 12 || N == 16);
  emulator::wgmma({d[0], N * 8, nullptr, a, b, std::is_same_v<T, bf16>, kTransposed, add});
}
template <class T, bool kTransposed, int N>
void wgmma(float (&d)[N][4], const uint32_t (&a)[4], uint64_t b, bool add) {
  static_assert(N == 8 || N == 12 || N == 16);
  emulator::wgmma({d[0], N * 8, a, 0, b, std::is_same_v<T, bf16>, kTransposed, add});
}

template <int kRegisters>
void fewer_registers() {}
template <int kRegisters>
void more_registers() {}

}  // namespace rz::cuda
