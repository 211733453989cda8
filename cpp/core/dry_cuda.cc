#include "core/dry_cuda.h"

#include <cstring>

#include "core/error.h"

namespace rz::cuda {
namespace {

// Always done.
class DryStream final : public Stream {
 public:
  using Stream::Stream;
  Device device() const override { return Device::Cuda; }
  Event record() override { return {this, 0}; }
  void wait(const Event&) override {}
  void wait_for_reuse(const Event&) override {}
  bool query(const Event&) const override { return true; }
  using Stream::synchronize;
  void synchronize(const Event&) override {}
  void drain(const Event&) override {}
};

class DryAllocator final : public CachingAllocator {
 public:
  explicit DryAllocator(const std::vector<std::unique_ptr<Stream>>* streams) : CachingAllocator(Device::Cuda, streams, block_sizes()) {}
  ~DryAllocator() override { trim(); }

 private:
  std::byte* map_range(size_t bytes) override {
    held_ += bytes;
    next_ += bytes;
    return reinterpret_cast<std::byte*>(next_ - bytes);
  }
  void unmap_range(std::byte*, size_t bytes) override { held_ -= bytes; }
  size_t reserved() const override { return held_; }
  [[noreturn]] void out_of_memory(size_t bytes, MemoryKind) const override { fail("ERR_OUT_OF_MEMORY", "a dry run cannot count ", bytes, " more bytes"); }

  size_t held_ = 0;
  uintptr_t next_ = uintptr_t{1} << 56;  // neither of a process nor of the host's dry memory
};

class DryBackend final : public Backend {
 public:
  explicit DryBackend(const std::vector<std::unique_ptr<Stream>>* streams) : allocator_(std::make_shared<DryAllocator>(streams)) {}

  std::unique_ptr<Stream> create_stream(int index, std::string name, Profiler*) override { return std::make_unique<DryStream>(index, std::move(name)); }
  CachingAllocator& allocator() override { return *allocator_; }
  void set_memory_limit(size_t) override { refuse(); }
  KernelChoices& kernels() override { refuse(); }
  void upload(void*, const void*, size_t, CpuStream&, Stream&) override {}
  void download(void*, const void*, size_t, CpuStream&, Stream&) override {}
  void read(void* host_bytes, const void*, size_t bytes, Stream&) override { std::memset(host_bytes, 0, bytes); }
  int timestamp(Stream&) override { refuse(); }
  double milliseconds(int, int) override { refuse(); }
  void forget_timestamps() override {}
  double pinned_copy_milliseconds(size_t, bool, Stream&) override { refuse(); }

 private:
  [[noreturn]] static void refuse() { fail("ERR_DRY_RUN", "the device of a dry run has no kernels, no limit and no time"); }

  std::shared_ptr<DryAllocator> allocator_;
};

}  // namespace

std::unique_ptr<Backend> open_dry(const std::vector<std::unique_ptr<Stream>>* streams) { return std::make_unique<DryBackend>(streams); }

}  // namespace rz::cuda
