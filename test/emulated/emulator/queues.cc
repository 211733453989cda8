// The queues, and the part of the CUDA runtime's interface that is about them.
#include "queues.h"

#include <cuda_runtime_api.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "block.h"

struct CUevent_st {
  uint64_t recorded = 0, completed = 0;
  std::chrono::steady_clock::time_point at;
};

namespace rz::emulator {
namespace {

struct Task {
  std::function<void()> run;
  Ready ready;
  bool is_command;
  const char* host = nullptr;  // the call that made it wait for the host
};

}  // namespace
}  // namespace rz::emulator

struct CUstream_st {
  std::deque<rz::emulator::Task> tasks;
  size_t commands = 0;  // of them
};

namespace rz::emulator {
namespace {

std::recursive_mutex mutex;
std::vector<CUstream_st*> streams;
std::string failed;

uint64_t seed_of_environment() {
  const char* seed = std::getenv("RANKZERO_EMULATED_SEED");
  return seed ? std::strtoull(seed, nullptr, 10) : 1;
}
std::mt19937_64& random_source() {
  static std::mt19937_64 source(seed_of_environment());
  return source;
}

// RANKZERO_EMULATED_QUEUE: how many commands a stream holds; a driver's holds about 1,024.
size_t capacity() {
  static const size_t commands = [] {
    const char* text = std::getenv("RANKZERO_EMULATED_QUEUE");
    return text ? std::strtoull(text, nullptr, 10) : size_t{64};
  }();
  return commands;
}

// Runs the head of a random stream; false if no head is ready.
bool step() {
  std::vector<CUstream_st*> able;
  for (CUstream_st* stream : streams)
    if (!stream->tasks.empty() && (!stream->tasks.front().ready || stream->tasks.front().ready())) able.push_back(stream);
  if (able.empty()) return false;
  CUstream_st* chosen = able[random_source()() % able.size()];
  Task task = std::move(chosen->tasks.front());
  chosen->tasks.pop_front();
  chosen->commands -= task.is_command;
  if (!failed.empty()) return true;
  try {
    task.run();
  } catch (const std::exception& error) {
    failed = error.what();
    std::fprintf(stderr, "emulator: %s\n", failed.c_str());
  }
  return true;
}

// Runs work until `done`; other host threads may have to bring what a head waits for. After a failure nothing will be done.
template <class Done>
cudaError_t run_until(Done done) {
  std::unique_lock lock(mutex);
  while (failed.empty() && !done()) {
    if (step()) continue;
    lock.unlock();
    usleep(20);
    lock.lock();
  }
  return failed.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}

}  // namespace

static void push(CUstream_st* stream, Task task) {
  std::lock_guard lock(mutex);
  // As a driver whose queue is full: nobody else comes in before the device has made room.
  while (task.is_command && stream->commands >= capacity() && failed.empty())
    if (!step()) usleep(20);
  stream->commands += task.is_command;
  stream->tasks.push_back(std::move(task));
  for (uint64_t some = random_source()() % 4 == 0 ? random_source()() % 8 : 0; some > 0 && step(); --some) {
  }
}

void enqueue(CUstream_st* stream, std::function<void()> run, Ready ready, bool is_command) {
  push(stream, {std::move(run), std::move(ready), is_command});
}

void enqueue_wait_for_host(CUstream_st* stream, const char* call, Ready ready) { push(stream, {[] {}, std::move(ready), true, call}); }

// With the mutex.
static bool fail(const std::string& why) {
  if (failed.empty()) std::fprintf(stderr, "emulator: %s\n", (failed = why).c_str());
  return false;
}

bool expect_no_wait_for_host(const std::string& call) {
  std::lock_guard lock(mutex);
  for (CUstream_st* stream : streams)
    for (const Task& task : stream->tasks)
      if (task.host && !task.ready())
        return fail(call + " may wait for the device with locks held, and there a " + task.host + " waits for the host");
  return true;
}

static std::atomic<int> waiting_for_device{0};

bool wait_for_device(const std::string& call) {
  if (!expect_no_wait_for_host(call)) return false;
  auto is_idle = [] { return std::all_of(streams.begin(), streams.end(), [](const CUstream_st* stream) { return stream->tasks.empty(); }); };
  ++waiting_for_device;
  const bool succeeded = run_until(is_idle) == cudaSuccess;
  --waiting_for_device;
  return succeeded;
}

bool first_use(const void* code, const std::string& call) {
  static std::set<const void*> loaded;
  {
    std::lock_guard lock(mutex);
    if (!loaded.insert(code).second) return true;
  }
  return wait_for_device(call);
}

bool advance() {
  std::lock_guard lock(mutex);
  return step();
}

const char* failure() { return failed.c_str(); }

uint64_t next_seed() {
  std::lock_guard lock(mutex);
  return random_source()();
}

}  // namespace rz::emulator

using namespace rz::emulator;

extern "C" {

cudaError_t cudaDeviceGetStreamPriorityRange(int* lowest, int* highest) {
  *lowest = 0;
  *highest = -5;
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
  std::lock_guard lock(mutex);
  streams.push_back(*stream = new CUstream_st);
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return run_until([&] { return stream->tasks.empty(); });
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  cudaStreamSynchronize(stream);
  std::lock_guard lock(mutex);
  std::erase(streams, stream);
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  return run_until([] {
    for (CUstream_st* stream : streams)
      if (!stream->tasks.empty()) return false;
    return true;
  });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  cudaEventSynchronize(event);
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  std::lock_guard lock(mutex);
  const uint64_t turn = ++event->recorded;
  enqueue(stream, [event, turn] {
    if (turn <= event->completed) return;
    event->completed = turn;
    event->at = std::chrono::steady_clock::now();
  });
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  std::lock_guard lock(mutex);
  const uint64_t turn = event->recorded;
  enqueue(stream, [] {}, [event, turn] { return event->completed >= turn; });
  return cudaSuccess;
}

// RANKZERO_EMULATED_LOCKED_QUERIES: a call that waits for the device holds a lock of the driver that this one needs.
cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (std::getenv("RANKZERO_EMULATED_LOCKED_QUERIES"))
    while (waiting_for_device > 0) usleep(100);
  std::lock_guard lock(mutex);
  if (event->completed < event->recorded && random_source()() % 2) step();
  if (!failed.empty()) return cudaErrorLaunchFailure;
  return event->completed >= event->recorded ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const uint64_t turn = event->recorded;
  return run_until([&] { return event->completed >= turn; });
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  std::lock_guard lock(mutex);
  *milliseconds = std::chrono::duration<float, std::milli>(to->at - from->at).count();
  return cudaSuccess;
}

}  // extern "C"
