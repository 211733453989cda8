#include "cuda/context.h"

#include <new>

#include "cuda/check.h"

namespace rz::cuda {

// Events without timing. They are recycled: making one costs more than recording it.
struct Context::EventPool {
  std::mutex mutex;
  std::vector<cudaEvent_t> free;
  ~EventPool() {
    for (cudaEvent_t event : free) cudaEventDestroy(event);
  }
};

Context::Context(int device) : device_(device), events_(std::make_shared<EventPool>()) {
  check(cudaSetDevice(device), "opening the device");
  check(cudaGetDeviceProperties(&properties_, device), "reading the properties of the device");
  void* memory = nullptr;
  check(cudaHostAlloc(&memory, sizeof(Signal) * 32, cudaHostAllocMapped | cudaHostAllocPortable), "allocating pinned memory");
  signals_ = static_cast<Signal*>(memory);
  for (int i = 0; i < 32; ++i) new (&signals_[i]) Signal{0};
}

Context::~Context() { cudaFreeHost(signals_); }

void Context::bind() const {
  static thread_local int bound = -1;
  if (bound == device_) return;
  check(cudaSetDevice(device_), "making the device current");
  bound = device_;
}

EventBox Context::event() {
  cudaEvent_t event = nullptr;
  {
    std::lock_guard lock(events_->mutex);
    if (!events_->free.empty()) {
      event = events_->free.back();
      events_->free.pop_back();
    }
  }
  if (!event) check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "creating an event");
  return EventBox(event, [pool = events_](cudaEvent_t done) {
    std::lock_guard lock(pool->mutex);
    pool->free.push_back(done);
  });
}

unsigned long long Context::signal_address(int stream) const {
  void* address = nullptr;
  check(cudaHostGetDevicePointer(&address, &signals_[stream], 0), "mapping pinned memory");
  return reinterpret_cast<unsigned long long>(address);
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
