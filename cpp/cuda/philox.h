// Philox 4x32-10 on a device; core/philox.h has it for the host.
#pragma once
#include "cuda/device.h"

namespace rz::cuda {

struct Words {
  uint32_t c0, c1, c2, c3;
};

static __device__ Words philox_block(uint64_t seed, uint64_t key, uint64_t counter) {
  Words w{static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)};
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * w.c0, p1 = uint64_t{0xCD9E8D57u} * w.c2;
    w = {static_cast<uint32_t>(p1 >> 32) ^ w.c1 ^ k0, static_cast<uint32_t>(p1), static_cast<uint32_t>(p0 >> 32) ^ w.c3 ^ k1,
         static_cast<uint32_t>(p0)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return w;
}

static __device__ float uniform_of(uint32_t word) { return static_cast<float>(static_cast<int32_t>(word >> 8)) * 0x1p-24f; }

}  // namespace rz::cuda
