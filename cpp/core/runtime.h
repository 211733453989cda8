// Everything one JavaScript environment owns: streams, allocator, live handles. Destroyed with the environment.
#pragma once
#include <memory>
#include <vector>

#include "core/cpu_allocator.h"
#include "core/cpu_stream.h"
#include "core/cuda.h"
#include "core/profiler.h"

namespace rz {

class Runtime {
 public:
  Runtime();
  ~Runtime();
  Runtime(const Runtime&) = delete;

  Profiler& profiler() { return profiler_; }
  Stream* create_stream(std::string name, Device device = Device::Cpu);  // at most 32; they live as long as the runtime
  Stream* stream(int index);
  std::vector<Stream*> streams();
  std::vector<CpuStream*> cpu_streams();
  Stream* compute(Device device = Device::Cpu) { return device == Device::Cpu ? streams_[0].get() : (cuda(), cuda_compute_); }
  CpuAllocator& allocator() { return *allocator_; }
  std::shared_ptr<Storage> allocate(size_t bytes, Stream* home, MemoryKind kind) {
    return home->device() == Device::Cpu ? allocator_->allocate(bytes, home, kind) : cuda().allocator().allocate(bytes, home, kind);
  }

  // Opens the device at the first call: ERR_CUDA_UNAVAILABLE, saying why.
  cuda::Backend& cuda();
  // Which of the machine's devices that is: before it is opened. Default: the one of LOCAL_RANK.
  void choose_cuda(int index);
  bool has_cuda() const { return cuda_ != nullptr; }

  // Blocks until no stream has work on the storage; throws what failed there.
  void synchronize(const Storage& storage);
  void synchronize_all();

  // A dry run: ops and collectives are checked and dropped, memory of the host and of a device is counted and does not exist, and
  // there is a device in any case. There is no way back, so
  // it begins before anything was allocated: ERR_DRY_RUN.
  void make_dry();
  bool is_dry() const { return dry_; }

 private:
  std::unique_ptr<cuda::Backend> cuda_;  // outlives its streams
  std::vector<std::unique_ptr<Stream>> streams_;
  Stream* cuda_compute_ = nullptr;
  int cuda_index_ = -1;
  std::shared_ptr<CpuAllocator> allocator_;
  Profiler profiler_;
  bool dry_ = false;
};

}  // namespace rz
