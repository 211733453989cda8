// In place of libcuda.so.1: what cpp/cuda/driver.h opens.
#include <atomic>

#include "queues.h"

extern "C" {

int cuDriverGetVersion(int* version) {
  *version = 13000;
  return 0;
}

int cuStreamWaitValue64_v2(CUstream_st* stream, unsigned long long address, unsigned long long value, unsigned) {
  auto* signal = reinterpret_cast<std::atomic<unsigned long long>*>(address);
  rz::emulator::enqueue(stream, [] {}, [signal, value] { return signal->load(std::memory_order_acquire) >= value; });
  return 0;
}

}  // extern "C"
