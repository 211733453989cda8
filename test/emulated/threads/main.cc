// The host's side of the CUDA backend from several threads at once, for ThreadSanitizer: streams, events, copies, the allocator
// and the abort of communicators. `main ROUNDS`. A wrong value ends it with exit code 1, a race with that of ThreadSanitizer.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <thread>
#include <vector>

#include "comm/nccl_watch.h"
#include "core/runtime.h"
#include "cuda/backend.h"
#include "cuda/device.h"
#include "cuda/launch.h"

// No op is used here, and all their kernels would take minutes to compile.
void rz::cuda::fill_op_table() {}

namespace {

using rz::CpuStream;
using rz::Device;
using rz::Event;
using rz::MemoryKind;
using rz::Runtime;
using rz::Storage;
using rz::Stream;
using rz::cuda::CudaStream;

constexpr int kNumel = 257;
constexpr size_t kBytes = kNumel * sizeof(float);

void expect(bool holds, const char* what) {
  if (!holds) throw std::runtime_error(what);
}

void add_one(float* x, int numel) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < numel) x[i] += 1.0f;
}

void enqueue_add(Stream* stream, const Storage& x) {
  auto& device = static_cast<CudaStream&>(*stream);
  auto* values = static_cast<float*>(x.data());
  device.enqueue("add", [&] { rz::cuda::launch(add_one, 3, 128, 0, device, values, kNumel); });
}

// What a training step does: host streams bring values and take them back, streams of the device compute and wait for each other,
// memory is freed by whoever was last, and other threads ask for events meanwhile.
class Steps {
 public:
  explicit Steps(Runtime& runtime) : runtime_(runtime) {
    for (const char* name : {"one", "two", "three"}) hosts_.push_back(static_cast<CpuStream*>(runtime.create_stream(name)));
    for (const char* name : {"gathers", "reduces"}) devices_.push_back(runtime.create_stream(name, Device::Cuda));
    devices_.push_back(runtime.compute(Device::Cuda));
  }

  void run(int rounds) {
    std::vector<std::thread> watchers;
    for (int i = 0; i < 2; ++i) watchers.emplace_back([this] { watch(); });
    for (int round = 0; round < rounds; ++round) step(round);
    for (CpuStream* host : hosts_) host->synchronize();
    done_ = true;
    for (std::thread& watcher : watchers) watcher.join();
    runtime_.synchronize_all();
    expect(wrong_ == 0, "values of a copy to the device and back are wrong");
  }

 private:
  void step(int round) {
    CpuStream* host = hosts_[static_cast<size_t>(round) % hosts_.size()];
    Stream* first = devices_[static_cast<size_t>(round) % devices_.size()];
    Stream* second = devices_[static_cast<size_t>(round + 1) % devices_.size()];
    auto source = runtime_.allocate(kBytes, host, MemoryKind::Other), result = runtime_.allocate(kBytes, host, MemoryKind::Other);
    auto values = runtime_.allocate(kBytes, first, MemoryKind::Other);
    host->enqueue("fill", [source, round] {
      for (int i = 0; i < kNumel; ++i) static_cast<float*>(source->data())[i] = static_cast<float>(round);
    });
    runtime_.cuda().upload(values->data(), source->data(), kBytes, *host, *first);
    enqueue_add(first, *values);
    const Event computed = first->record();
    publish(computed);
    values->used_on(second);
    second->wait(computed);
    enqueue_add(second, *values);
    runtime_.cuda().download(result->data(), values->data(), kBytes, *host, *second);
    // Freed here, while the device still has work on it, and on the host stream's thread.
    values.reset();
    host->enqueue("compare", [this, result, round] {
      for (int i = 0; i < kNumel; ++i) wrong_ += static_cast<const float*>(result->data())[i] != static_cast<float>(round + 2);
    });
    if (round % 7 == 0) first->wait(host->record());
    if (round % 11 == 0) second->synchronize();
    if (round % 16 == 0) runtime_.cuda().allocator().stats();
  }

  void publish(const Event& event) {
    std::lock_guard lock(mutex_);
    last_ = event;
  }
  void watch() {
    while (!done_) {
      Event event;
      {
        std::lock_guard lock(mutex_);
        event = last_;
      }
      if (event.stream && !event.stream->query(event)) event.stream->synchronize(event);
      std::this_thread::yield();
    }
  }

  Runtime& runtime_;
  std::vector<CpuStream*> hosts_;
  std::vector<Stream*> devices_;
  std::mutex mutex_;
  Event last_;
  std::atomic<bool> done_{false};
  std::atomic<int> wrong_{0};
};

// Collectives that never end, of two communicators, while the job is aborted by another thread: whoever waits gets its error.
void test_abort(Runtime& runtime) {
  using namespace rz::comm;
  const Nccl& api = nccl_api();
  expect(api.report.usable(), "the NCCL of the emulator was not opened");
  auto state = std::make_shared<JobState>(0, 2, 60.0);
  auto watch = NcclWatch::of(state);
  Stream* device = runtime.compute(Device::Cuda);
  auto* held = static_cast<CpuStream*>(runtime.create_stream("held"));
  std::atomic<bool> go = false;
  held->enqueue("held", [&go] {
    while (!go) std::this_thread::yield();
  });
  std::vector<nccl::Comm> comms;
  for (const char* group : {"gathers", "reduces"}) {
    nccl::UniqueId id{};
    expect(api.GetUniqueId(&id) == 0, "no id");
    expect(api.CommInitRank(&comms.emplace_back(), 1, id, 0) == 0, "no communicator");
    watch->add(comms.back(), group);
  }
  const Event before = device->record();
  device->wait(held->record());
  const Event after = device->record();
  for (nccl::Comm comm : comms) {
    expect(watch->begin_call(comm), "a communicator is aborted before the job is");
    watch->enqueued(comm, {"all_gather", 1, before, after});
    watch->end_call(comm);
  }
  std::thread aborting([state] { state->abort("ERR_PEER", "rank 1 (pid 1) died"); });
  std::string code = "nothing";
  std::thread releasing([&] {
    while (!static_cast<CudaStream*>(device)->context().failed()) std::this_thread::yield();
    go = true;
  });
  try {
    device->synchronize();
  } catch (const rz::Error& error) {
    code = error.code();
  }
  aborting.join();
  releasing.join();
  expect(code == "ERR_PEER", "who waits for the device does not get the error of the job");
  for (nccl::Comm comm : comms) {
    while (watch->begin_call(comm)) watch->end_call(comm), std::this_thread::yield();
    watch->remove(comm);
  }
}

}  // namespace

int main(int, char** argv) {
  const int rounds = std::atoi(argv[1]);
  try {
    for (int i = 0; i < 2; ++i) {
      Runtime runtime;
      runtime.compute(Device::Cuda);
      Steps(runtime).run(rounds);
      test_abort(runtime);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "threads: %s\n", error.what());
    return 1;
  }
  std::printf("ok %d rounds\n", rounds);
}
