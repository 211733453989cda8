#include "cuda/backend.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "cuda/check.h"
#include "cuda/stream.h"

namespace rz::cuda {
namespace {

void describe_copy(size_t bytes) { rz::describe({0, static_cast<double>(bytes)}); }

}  // namespace

CudaBackend::CudaBackend(int device, const std::vector<std::unique_ptr<Stream>>* streams)
    : context_(device), allocator_(std::make_shared<CudaAllocator>(context_, streams)) {
  fill_op_table();
}

std::unique_ptr<Stream> CudaBackend::create_stream(int index, std::string name, Profiler* profiler) {
  const bool urgent = std::exchange(has_compute_, true);
  return std::make_unique<CudaStream>(index, std::move(name), context_, *allocator_, profiler, urgent);
}

// Copies through the ring: first one side fills a slot, then the other empties it, each in its stream.
void CudaBackend::upload(void* device, const void* host_bytes, size_t bytes, CpuStream& host, Stream& stream) {
  auto& queue = static_cast<CudaStream&>(stream);
  for (size_t at = 0; at < bytes; at += PinnedRing::kSlotBytes) {
    size_t part = std::min(PinnedRing::kSlotBytes, bytes - at);
    PinnedRing::Slot& slot = ring_.next();
    host.wait_for_reuse(slot.free_after);
    std::byte* pinned = slot.data;
    auto* from = static_cast<const std::byte*>(host_bytes) + at;
    host.enqueue("upload", [pinned, from, part] { std::memcpy(pinned, from, part); });
    queue.wait(host.record());
    queue.enqueue("upload", [&] {
      describe_copy(part);
      check(cudaMemcpyAsync(static_cast<std::byte*>(device) + at, pinned, part, cudaMemcpyHostToDevice, queue.handle()), "[upload]");
    });
    slot.free_after = queue.record();
  }
}

void CudaBackend::download(void* host_bytes, const void* device, size_t bytes, CpuStream& host, Stream& stream) {
  auto& queue = static_cast<CudaStream&>(stream);
  for (size_t at = 0; at < bytes; at += PinnedRing::kSlotBytes) {
    size_t part = std::min(PinnedRing::kSlotBytes, bytes - at);
    PinnedRing::Slot& slot = ring_.next();
    queue.wait_for_reuse(slot.free_after);
    std::byte* pinned = slot.data;
    queue.enqueue("download", [&] {
      describe_copy(part);
      check(cudaMemcpyAsync(pinned, static_cast<const std::byte*>(device) + at, part, cudaMemcpyDeviceToHost, queue.handle()), "[download]");
    });
    host.wait(queue.record());
    auto* to = static_cast<std::byte*>(host_bytes) + at;
    host.enqueue("download", [pinned, to, part] { std::memcpy(to, pinned, part); });
    slot.free_after = host.record();
  }
}

void CudaBackend::read(void* host_bytes, const void* device, size_t bytes, Stream& stream) {
  auto& queue = static_cast<CudaStream&>(stream);
  for (size_t at = 0; at < bytes; at += PinnedRing::kSlotBytes) {
    size_t part = std::min(PinnedRing::kSlotBytes, bytes - at);
    PinnedRing::Slot& slot = ring_.next();
    queue.wait_for_reuse(slot.free_after);
    queue.enqueue("download", [&] {
      describe_copy(part);
      check(cudaMemcpyAsync(slot.data, static_cast<const std::byte*>(device) + at, part, cudaMemcpyDeviceToHost, queue.handle()), "[download]");
    });
    queue.synchronize();
    std::memcpy(static_cast<std::byte*>(host_bytes) + at, slot.data, part);
    slot.free_after = {};
  }
}

int CudaBackend::timestamp(Stream& stream) {
  context_.bind();
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDefault), "creating an event");
  timestamps_.emplace_back(event, [](cudaEvent_t done) { cudaEventDestroy(done); });
  auto& queue = static_cast<CudaStream&>(stream);
  queue.enqueue("timestamp", [&] { check(cudaEventRecord(event, queue.handle()), "recording an event"); });
  return static_cast<int>(timestamps_.size()) - 1;
}

double CudaBackend::milliseconds(int from, int to) {
  const int count = static_cast<int>(timestamps_.size());
  if (from < 0 || to < 0 || from >= count || to >= count)
    fail("ERR_ARGUMENT", "timestamps are 0 … ", count - 1, " but ", from, " and ", to, " were given");
  context_.bind();
  check(cudaEventSynchronize(timestamps_[static_cast<size_t>(to)].get()), "waiting for a timestamp");
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, timestamps_[static_cast<size_t>(from)].get(), timestamps_[static_cast<size_t>(to)].get()),
        "reading timestamps");
  return milliseconds;
}

double CudaBackend::pinned_copy_milliseconds(size_t bytes, bool to_device, Stream& stream) {
  context_.bind();
  void* pinned = nullptr;
  context_.await_host();
  check(cudaHostAlloc(&pinned, bytes, cudaHostAllocDefault), "allocating pinned memory");
  auto free = [this](void* memory) {
    context_.await_host();
    cudaFreeHost(memory);
  };
  std::unique_ptr<void, decltype(free)> freed(pinned, free);
  std::memset(pinned, 1, bytes);
  auto& queue = static_cast<CudaStream&>(stream);
  std::shared_ptr<Storage> device = queue.scratch(bytes);
  const int from = timestamp(stream);
  queue.enqueue("pinned copy", [&] {
    check(to_device ? cudaMemcpyAsync(device->data(), pinned, bytes, cudaMemcpyHostToDevice, queue.handle())
                    : cudaMemcpyAsync(pinned, device->data(), bytes, cudaMemcpyDeviceToHost, queue.handle()),
          "[pinned copy]");
  });
  const int to = timestamp(stream);
  return milliseconds(from, to);
}

}  // namespace rz::cuda
