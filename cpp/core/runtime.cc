#include "core/runtime.h"

#include "core/dry_cuda.h"
#include "core/error.h"

namespace rz {

Runtime::Runtime() : allocator_(std::make_shared<CpuAllocator>(&streams_)), profiler_(allocator_.get()) {
  streams_.reserve(32);
  create_stream("compute");
}

Runtime::~Runtime() {
  for (auto& stream : streams_) {
    try {
      stream->synchronize();
    } catch (const std::exception&) {
      // The environment is going: there is nobody left to tell.
    }
  }
}

Stream* Runtime::create_stream(std::string name, Device device) {
  if (streams_.size() == 32) fail("ERR_STREAM", "a runtime has at most 32 streams");
  int index = static_cast<int>(streams_.size());
  if (device == Device::Cuda) {
    streams_.push_back(cuda().create_stream(index, std::move(name), &profiler_));
  } else {
    auto stream = std::make_unique<CpuStream>(index, std::move(name), &profiler_);
    if (dry_) stream->make_dry();
    streams_.push_back(std::move(stream));
  }
  return streams_.back().get();
}

void Runtime::choose_cuda(int index) {
  if (has_cuda() && index != cuda_index_) fail("ERR_ARGUMENT", "this process has opened another device cuda already");
  cuda_index_ = index;
}

cuda::Backend& Runtime::cuda() {
  if (!cuda_) {
    cuda_ = dry_ ? cuda::open_dry(&streams_) : cuda::open(&streams_, cuda_index_);
    cuda_compute_ = create_stream("cuda compute", Device::Cuda);
  }
  return *cuda_;
}

void Runtime::make_dry() {
  if (allocator_->stats().total_peak > 0 || has_cuda()) fail("ERR_DRY_RUN", "a dry run needs a process in which nothing was allocated yet");
  dry_ = true;
  allocator_->make_dry();
  for (CpuStream* stream : cpu_streams()) stream->make_dry();
}

Stream* Runtime::stream(int index) {
  if (index < 0 || static_cast<size_t>(index) >= streams_.size()) fail("ERR_STREAM", "stream ", index, " does not exist");
  return streams_[static_cast<size_t>(index)].get();
}

std::vector<Stream*> Runtime::streams() {
  std::vector<Stream*> all;
  for (auto& stream : streams_) all.push_back(stream.get());
  return all;
}

std::vector<CpuStream*> Runtime::cpu_streams() {
  std::vector<CpuStream*> all;
  for (auto& stream : streams_)
    if (stream->device() == Device::Cpu) all.push_back(static_cast<CpuStream*>(stream.get()));
  return all;
}

void Runtime::synchronize(const Storage& storage) {
  storage.home()->synchronize();
  for (uint32_t mask = storage.foreign_streams(); mask; mask &= mask - 1) stream(std::countr_zero(mask))->synchronize();
}

void Runtime::synchronize_all() {
  for (auto& stream : streams_) stream->synchronize();
}

}  // namespace rz
