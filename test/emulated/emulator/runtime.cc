// The rest of the CUDA runtime's interface that cpp/cuda uses. Devices are of the host's memory; a process opens one of them.
#include <cuda_runtime_api.h>
#include <sanitizer/asan_interface.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>

#include "memory.h"
#include "queues.h"

using namespace rz::emulator;

namespace {

constexpr size_t kGap = 4096;
constexpr int kGarbage = 0xff;
std::mutex memory_mutex;
std::map<void*, size_t> allocations;
size_t used = 0;

int devices() {
  const char* count = std::getenv("RANKZERO_EMULATED_DEVICES");
  return count ? std::atoi(count) : 1;
}

}  // namespace

size_t rz::emulator::memory_capacity() {
  const char* bytes = std::getenv("RANKZERO_EMULATED_MEMORY");
  return bytes ? std::strtoull(bytes, nullptr, 10) : size_t{4} << 30;
}

bool rz::emulator::take_memory(size_t bytes) {
  std::lock_guard lock(memory_mutex);
  if (used + bytes > memory_capacity()) return false;
  used += bytes;
  return true;
}

void rz::emulator::give_memory(size_t bytes) {
  std::lock_guard lock(memory_mutex);
  used -= bytes;
}

extern "C" {

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  const char* driver = std::getenv("RANKZERO_EMULATED_DRIVER");
  if (driver && std::atoi(driver) / 1000 < CUDART_VERSION / 1000) return cudaErrorInsufficientDriver;
  *count = devices();
  return *count > 0 ? cudaSuccess : cudaErrorNoDevice;
}

// RANKZERO_EMULATED_SET_DEVICE_MS: how long it takes.
cudaError_t cudaSetDevice(int device) {
  if (const char* milliseconds = std::getenv("RANKZERO_EMULATED_SET_DEVICE_MS"))
    std::this_thread::sleep_for(std::chrono::milliseconds(std::atoi(milliseconds)));
  return device >= 0 && device < devices() ? cudaSuccess : cudaErrorInvalidDevice;
}

// Few and small multiprocessors, so that grids are short and loops over them long.
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  *properties = {};
  std::snprintf(properties->name, sizeof properties->name, "emulated device");
  // Of this host: another's device with the same number is another.
  char host[256] = "";
  gethostname(host, sizeof host - 1);
  const size_t place = std::hash<std::string>()(host);
  std::memcpy(properties->uuid.bytes, &place, sizeof place);
  properties->uuid.bytes[sizeof place] = static_cast<char>(device + 1);
  const char* capability = std::getenv("RANKZERO_EMULATED_CAPABILITY");  // as 90
  const int version = capability ? std::atoi(capability) : 90;
  properties->major = version / 10;
  properties->minor = version % 10;
  properties->multiProcessorCount = 2;
  properties->maxThreadsPerMultiProcessor = 1024;
  properties->totalGlobalMem = memory_capacity();
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return *rz::emulator::failure() ? cudaErrorLaunchFailure : cudaSuccess; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    default: return "cudaErrorUnknown";
  }
}

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure && *rz::emulator::failure() ? rz::emulator::failure() : cudaGetErrorName(error);
}

cudaError_t cudaMalloc(void** data, size_t bytes) {
  if (!wait_for_device("cudaMalloc")) return cudaErrorLaunchFailure;
  if (!take_memory(bytes)) return cudaErrorMemoryAllocation;
  std::lock_guard lock(memory_mutex);
  auto* base = static_cast<char*>(std::aligned_alloc(kGap, (bytes + kGap - 1) / kGap * kGap + 2 * kGap));
  if (!base) return cudaErrorMemoryAllocation;
  __asan_poison_memory_region(base, kGap);
  __asan_poison_memory_region(base + kGap + bytes, kGap);
  *data = base + kGap;
  allocations[*data] = bytes;
  return cudaSuccess;
}

cudaError_t cudaFree(void* data) {
  if (!data) return cudaSuccess;
  if (!wait_for_device("cudaFree")) return cudaErrorLaunchFailure;
  std::lock_guard lock(memory_mutex);
  const size_t bytes = allocations.at(data);
  used -= bytes;
  allocations.erase(data);
  __asan_unpoison_memory_region(static_cast<char*>(data) - kGap, bytes + 2 * kGap);
  std::free(static_cast<char*>(data) - kGap);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  std::lock_guard lock(memory_mutex);
  *total = memory_capacity();
  *free = *total - used;
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** data, size_t bytes, unsigned) {
  if (!wait_for_device("cudaHostAlloc")) return cudaErrorLaunchFailure;
  *data = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  if (!*data) return cudaErrorMemoryAllocation;
  std::memset(*data, kGarbage, bytes);
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* data) {
  wait_for_device("cudaFreeHost");
  std::free(data);
  return cudaSuccess;
}

cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  *device = host;
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  enqueue(stream, [=] { std::memmove(to, from, bytes); });
  return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height, cudaMemcpyKind,
                              cudaStream_t stream) {
  if (width > to_pitch || width > from_pitch) return cudaErrorInvalidPitchValue;
  enqueue(stream, [=] {
    for (size_t row = 0; row < height; ++row)
      std::memcpy(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch, width);
  });
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t stream) {
  enqueue(stream, [=] { std::memset(data, value, bytes); });
  return cudaSuccess;
}

}  // extern "C"
