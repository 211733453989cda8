// The CUDA backend as the rest of the program sees it. cpp/cuda implements it; where that is not built, core/no_cuda.cc does.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "core/allocator.h"
#include "core/cpu_stream.h"
#include "core/library.h"
#include "core/settings.h"

namespace rz::cuda {

constexpr size_t kMiB = size_t{1} << 20;
constexpr CachingAllocator::Sizes kBlockSizes{512, 0, 2 * kMiB, 16 * kMiB, 256 * kMiB};

struct DeviceInfo {
  std::string name, id;  // id: UUID, the same in every process
  int major, minor;  // compute capability
  int multiprocessors;
  size_t memory;  // bytes
  std::string problem;  // why this build cannot compute on it; empty when it can
};

// What there is and what is missing, for doctor. Never throws.
struct Description {
  bool built = false;
  std::string unavailable;  // why device `cuda` cannot be used; empty when it can
  int runtime = 0, driver = 0;  // as 13000; 0: none
  std::string architectures;    // that the kernels were compiled for
  std::vector<DeviceInfo> devices;
  std::vector<LibraryReport> libraries;
};
Description describe();
bool is_built();
// How a device's memory is cut, on a device and in a dry run.
CachingAllocator::Sizes block_sizes();

// One device, of one JavaScript environment.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::unique_ptr<Stream> create_stream(int index, std::string name, Profiler* profiler) = 0;
  virtual CachingAllocator& allocator() = 0;
  // At most so many bytes are taken from the device; 0: no limit but its own.
  virtual void set_memory_limit(size_t bytes) = 0;
  // By default what the environment says; ops that are launched from now on follow a change.
  virtual KernelChoices& kernels() = 0;

  // Enqueue copies between host and device through pinned memory; neither waits. `bytes` may not be touched before the work
  // on `host` has run.
  virtual void upload(void* device, const void* host_bytes, size_t bytes, CpuStream& host, Stream& stream) = 0;
  virtual void download(void* host_bytes, const void* device, size_t bytes, CpuStream& host, Stream& stream) = 0;
  // Copies to host memory and waits.
  virtual void read(void* host_bytes, const void* device, size_t bytes, Stream& stream) = 0;

  // Measurements, in the device's own time: a place in a stream, the milliseconds between two (waits for the later one), and
  // the end of all places.
  virtual int timestamp(Stream& stream) = 0;
  virtual double milliseconds(int from, int to) = 0;
  virtual void forget_timestamps() = 0;
  // How long one copy of so many bytes between pinned memory and the device takes.
  virtual double pinned_copy_milliseconds(size_t bytes, bool to_device, Stream& stream) = 0;
};

// Device `index` of those that describe() has, or with -1 the one of LOCAL_RANK. `streams` is the runtime's table.
// Errors: ERR_CUDA_UNAVAILABLE, saying why.
std::unique_ptr<Backend> open(const std::vector<std::unique_ptr<Stream>>* streams, int index);

}  // namespace rz::cuda
