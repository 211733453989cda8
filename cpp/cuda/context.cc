#include "cuda/context.h"

#include <chrono>
#include <new>
#include <thread>

#include "core/task_log.h"
#include "cuda/check.h"
#include "cuda/driver.h"

namespace rz::cuda {

// Events are recycled: making one costs more than recording it.
struct Context::EventPool {
  const unsigned flags;
  std::mutex mutex;
  std::vector<cudaEvent_t> free;
  ~EventPool() {
    for (cudaEvent_t event : free) cudaEventDestroy(event);
  }
};

Context::Context(int device)
    : device_(device), events_(new EventPool{cudaEventDisableTiming, {}, {}}), timed_events_(new EventPool{cudaEventDefault, {}, {}}) {
  bind();
  waits_for_signals_ = driver().waits_for_values(device);
  check(cudaGetDeviceProperties(&properties_, device), "reading the properties of the device");
  void* memory = nullptr;
  check(cudaHostAlloc(&memory, sizeof(Signal) * kSignals, cudaHostAllocMapped | cudaHostAllocPortable), "allocating pinned memory");
  signals_ = static_cast<Signal*>(memory);
  for (int i = 0; i < kSignals; ++i) new (&signals_[i]) Signal{0};
}

Context::~Context() { cudaFreeHost(signals_); }

void Context::bind() const {
  static thread_local int bound = -1;
  if (bound == device_) return;
  check(cudaSetDevice(device_), "making the device current");
  bound = device_;
}

EventBox Context::event() { return event_of(events_); }

EventBox Context::timed_event() { return event_of(timed_events_); }

EventBox Context::event_of(const std::shared_ptr<EventPool>& pool) {
  cudaEvent_t event = nullptr;
  {
    std::lock_guard lock(pool->mutex);
    if (!pool->free.empty()) {
      event = pool->free.back();
      pool->free.pop_back();
    }
  }
  if (!event) check(cudaEventCreateWithFlags(&event, pool->flags), "creating an event");
  return EventBox(event, [pool](cudaEvent_t done) {
    std::lock_guard lock(pool->mutex);
    pool->free.push_back(done);
  });
}

// The event lies between two readings of the host's clock: of some tries that which leaves the least between them.
const Context::Anchor& Context::anchor(cudaStream_t idle) {
  int64_t least = INT64_MAX;
  for (int tries = anchor_.event ? 0 : 5; tries > 0; --tries) {
    EventBox event = timed_event();
    const int64_t before = clock_now();
    check(cudaEventRecord(event.get(), idle), "recording an event");
    check(cudaEventSynchronize(event.get()), "waiting for an event");
    const int64_t between = clock_now() - before;
    if (between >= least) continue;
    least = between;
    anchor_ = {std::move(event), before + between / 2};
  }
  return anchor_;
}

unsigned long long Context::signal_address(int stream) const {
  void* address = nullptr;
  check(cudaHostGetDevicePointer(&address, &signals_[stream], 0), "mapping pinned memory");
  return reinterpret_cast<unsigned long long>(address);
}

void Context::await_host() const {
  for (size_t i = 0; i < kSignals; ++i)
    while (signals_[i].value.load(std::memory_order_acquire) < last_signal_[i].load()) std::this_thread::sleep_for(std::chrono::microseconds(20));
}

bool Context::awaits_host() const {
  for (size_t i = 0; i < kSignals; ++i)
    if (signals_[i].value.load(std::memory_order_acquire) < last_signal_[i].load()) return true;
  return false;
}

void Context::before_launch(const void* kernel) {
  std::lock_guard lock(loaded_mutex_);
  if (loaded_.insert(kernel).second) await_host();
}

void Context::fail(std::exception_ptr error) {
  std::call_once(failing_, [&] {
    failure_ = std::move(error);
    failed_.store(true, std::memory_order_release);
  });
}

void Context::throw_failure() const {
  if (failed()) std::rethrow_exception(failure_);
}

}  // namespace rz::cuda
