// In place of libcuda.so.1: what cpp/cuda/driver.h opens.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "sm90.h"
#include "queues.h"

extern "C" {

constexpr int kInvalidValue = 1, kNotSupported = 801;

static bool can_wait_for_values() { return !std::getenv("RANKZERO_EMULATED_WITHOUT_VALUE_WAITS"); }

int cuDriverGetVersion(int* version) {
  const char* old = std::getenv("RANKZERO_EMULATED_DRIVER");
  *version = old ? std::atoi(old) : 13000;
  return 0;
}

int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return 0;
}

// RANKZERO_EMULATED_WITHOUT_VMM: it has no virtual memory management.
int cuDeviceGetAttribute(int* value, int attribute, int) {
  if (attribute == 122) *value = can_wait_for_values();
  else if (attribute == 102) *value = !std::getenv("RANKZERO_EMULATED_WITHOUT_VMM");
  else if (attribute == 110) *value = 0;
  else return kInvalidValue;
  return 0;
}

int cuStreamWaitValue64_v2(CUstream_st* stream, unsigned long long address, unsigned long long value, unsigned) {
  if (!can_wait_for_values()) return kNotSupported;
  auto* signal = reinterpret_cast<std::atomic<unsigned long long>*>(address);
  rz::emulator::enqueue_wait_for_host(stream, "cuStreamWaitValue64", [signal, value] { return signal->load(std::memory_order_acquire) >= value; });
  return 0;
}

// What cuda.h says of it, and that a box is as wide as its swizzle.
int cuTensorMapEncodeTiled(void* map, int dtype, uint32_t rank, void* data, const uint64_t* size, const uint64_t* stride, const uint32_t* box,
                           const uint32_t* step, int interleave, int swizzle, int l2_promotion, int beyond) {
  constexpr int kInvalidValue = 1;
  const uint32_t span = swizzle == 2 ? 64 : swizzle == 3 ? 128 : 0;
  bool valid = (dtype == 6 || dtype == 9) && rank == 3 && interleave == 0 && span != 0 && l2_promotion >= 0 && l2_promotion <= 3 && beyond == 0;
  valid = valid && reinterpret_cast<uintptr_t>(map) % 64 == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
  for (int i = 0; valid && i < 3; ++i) valid = size[i] >= 1 && size[i] <= uint64_t{1} << 32 && box[i] >= 1 && box[i] <= 256 && step[i] == 1;
  for (int i = 0; valid && i < 2; ++i) valid = stride[i] % 16 == 0 && stride[i] < uint64_t{1} << 40;
  if (!valid || box[0] * 2 != span) return kInvalidValue;
  const rz::emulator::TensorMapContent content{rz::emulator::kTensorMapMark, static_cast<const unsigned char*>(data), {size[0], size[1], size[2]},
                                               {stride[0], stride[1]}, {box[0], box[1], box[2]}, span};
  std::memcpy(map, &content, sizeof content);
  return 0;
}

}  // extern "C"
