// Reference-counted bytes on a device. A storage remembers its home stream and every other stream that touched it,
// so that its memory is reused only after all of them are past it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/dtype.h"
#include "core/stream.h"

namespace rz {

// What memory is for: the counters behind `memoryStats()` and the pre-flight plan.
enum class MemoryKind : uint8_t { Other = 0, Parameter = 1, Gradient = 2, Optimizer = 3, Activation = 4, Unshard = 5, Staging = 6 };
constexpr int kMemoryKinds = 7;
constexpr const char* name_of(MemoryKind kind) {
  constexpr const char* names[kMemoryKinds] = {"other", "parameter", "gradient", "optimizer", "activation", "unshard", "staging"};
  return names[static_cast<int>(kind)];
}

class Storage {
 public:
  Storage(void* data, size_t bytes, Device device, Stream* home) : data_(data), bytes_(bytes), device_(device), home_(home) {}
  virtual ~Storage() = default;
  Storage(const Storage&) = delete;

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  Device device() const { return device_; }
  Stream* home() const { return home_; }
  // Called for every op that touches the storage, on the thread that enqueues it.
  void used_on(Stream* stream) {
    if (stream != home_) foreign_ |= 1u << stream->index();
  }
  uint32_t foreign_streams() const { return foreign_; }

  // Handles are counted on the JavaScript thread. When the last one goes the memory is given back at once, although
  // enqueued work still holds the object: reuse is ordered behind that work by its streams.
  void add_handle() { ++handles_; }
  void drop_handle() {
    if (--handles_ == 0) retire();
  }
  int handles() const { return handles_; }

  // Storages that peers can map (allocated by a process group) name their segment; others return -1.
  virtual int segment() const { return -1; }
  // A number that all mappings of memory which several ranks write have in common; 0 for memory of one rank.
  virtual int64_t whole() const { return 0; }
  // Descriptor of the memory itself, where writing through it is cheaper than touching pages that do not exist yet; or -1.
  virtual int backing() const { return -1; }

 protected:
  // Gives the memory back to its allocator. Called at most once by retire(), from the last handle or the destructor.
  virtual void give_back() {}
  void retire() {
    if (!retired_) {
      retired_ = true;
      give_back();
    }
  }

  void* data_;
  size_t bytes_;
  Device device_;
  Stream* home_;
  uint32_t foreign_ = 0;

 private:
  int handles_ = 0;
  bool retired_ = false;
};

// A contiguous run of elements of a storage: what a tensor handle stands for.
struct TensorRef {
  std::shared_ptr<Storage> storage;
  int64_t offset = 0;  // elements
  int64_t numel = 0;
  DType dtype = DType::Float32;
  void* data() const { return static_cast<std::byte*>(storage->data()) + offset * size_of(dtype); }
  size_t bytes() const { return static_cast<size_t>(numel * size_of(dtype)); }
};

}  // namespace rz
