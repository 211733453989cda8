// The one device of an environment: its context, its memory, and the copies between host and device.
#pragma once
#include "core/cuda.h"
#include "cuda/allocator.h"
#include "cuda/context.h"
#include "cuda/pinned_ring.h"

namespace rz::cuda {

class CudaBackend final : public Backend {
 public:
  CudaBackend(int device, const std::vector<std::unique_ptr<Stream>>* streams);

  std::unique_ptr<Stream> create_stream(int index, std::string name, Profiler* profiler) override;
  CachingAllocator& allocator() override { return *allocator_; }
  void set_memory_limit(size_t bytes) override { allocator_->set_limit(bytes); }
  KernelChoices& kernels() override { return context_.kernels; }
  void upload(void* device, const void* host_bytes, size_t bytes, CpuStream& host, Stream& stream) override;
  void download(void* host_bytes, const void* device, size_t bytes, CpuStream& host, Stream& stream) override;
  void read(void* host_bytes, const void* device, size_t bytes, Stream& stream) override;
  int timestamp(Stream& stream) override;
  double milliseconds(int from, int to) override;
  void forget_timestamps() override { timestamps_.clear(); }
  double pinned_copy_milliseconds(size_t bytes, bool to_device, Stream& stream) override;

 private:
  Context context_;
  std::shared_ptr<CudaAllocator> allocator_;
  PinnedRing ring_;
  // The first stream computes. The others are of communication, for which peers wait: a GEMM's blocks would keep it out.
  bool has_compute_ = false;
  std::vector<std::shared_ptr<CUevent_st>> timestamps_;  // with timing, unlike those of the context
};

// Sets the table of ops (ops/dispatch.h).
void fill_op_table();

}  // namespace rz::cuda
