// What the streams, the allocator and the copies of one device share.
#pragma once
#include <cuda_runtime_api.h>

#include <array>
#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <unordered_set>
#include <vector>

#include "core/settings.h"
#include "core/stream.h"

namespace rz::cuda {

using EventBox = std::shared_ptr<CUevent_st>;  // goes back to the pool with its last holder

class Context {
 public:
  explicit Context(int device);
  ~Context();
  Context(const Context&) = delete;

  // Makes the device current on the calling thread; every entry from a thread of ours goes through here.
  void bind() const;
  int device() const { return device_; }
  const cudaDeviceProp& properties() const { return properties_; }
  EventBox event();
  EventBox timed_event();

  // A moment of the device on the host's clock, from which profiles count back. Made at the first call, on a stream that has
  // no work.
  struct Anchor {
    EventBox event;
    int64_t time = 0;  // of clock_now()
  };
  const Anchor& anchor(cudaStream_t idle);
  void forget_anchor() { anchor_ = {}; }

  // Its streams can wait for the signals below.
  bool waits_for_signals() const { return waits_for_signals_; }

  // A number in pinned memory that stands for the progress of one CPU stream: streams of the device wait for it, and the
  // CPU stream raises it.
  std::atomic<uint64_t>& signal(int stream) { return signals_[stream].value; }
  uint64_t next_signal(int stream) { return ++last_signal_[static_cast<size_t>(stream)]; }
  unsigned long long signal_address(int stream) const;

  // Until no stream of the device waits for the host any more. Called by the thread that launches, before what makes the driver
  // load code: that may wait for the whole device, with locks that calls of the threads below CPU streams need too.
  void await_host() const;
  bool awaits_host() const;
  // The same before the first launch of a kernel.
  void before_launch(const void* kernel);

  // Called when work of the device was cut off, before what waits for it goes on: from then on whoever waits for the device gets
  // the first such error, since no value that came later can be trusted.
  void fail(std::exception_ptr error);
  bool failed() const { return failed_.load(std::memory_order_acquire); }
  void throw_failure() const;

  // The op that was enqueued last on any stream; for the text of an out-of-memory error.
  const char* last_op = nullptr;

  // Read and changed by the thread that launches.
  KernelChoices kernels = KernelChoices::of_environment();

 private:
  static constexpr int kSignals = 32;
  struct alignas(64) Signal {
    std::atomic<uint64_t> value;
  };
  int device_;
  bool waits_for_signals_ = false;
  cudaDeviceProp properties_;
  Signal* signals_;
  std::array<std::atomic<uint64_t>, kSignals> last_signal_{};
  std::mutex loaded_mutex_;
  std::unordered_set<const void*> loaded_;  // kernels
  std::once_flag failing_;
  std::exception_ptr failure_;
  std::atomic<bool> failed_{false};
  struct EventPool;
  EventBox event_of(const std::shared_ptr<EventPool>& pool);
  std::shared_ptr<EventPool> events_, timed_events_;
  Anchor anchor_;
};

}  // namespace rz::cuda
