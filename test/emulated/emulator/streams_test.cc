// Order between streams, devices and memory, on the device under test: what is only right when every wait is there.
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <thread>

#include "../../native/kernels/check.h"
#include "core/runtime.h"
#include "cuda/launch.h"
#include "ops/elementwise.h"

namespace {

using rz::Device;
using rz::MemoryKind;
using rz::Stream;

constexpr int64_t kNumel = 1000;
constexpr int kRounds = 40;

rz::Runtime& runtime() { return *runtime_under_test(); }

struct Floats {
  std::shared_ptr<rz::Storage> storage;
  int64_t numel;
  Floats(Stream* home, int64_t n) : storage(runtime().allocate(static_cast<size_t>(n) * 4, home, MemoryKind::Other)), numel(n) {}
  View view(Stream* used_on) const {
    storage->used_on(used_on);
    return {storage->data(), DType::Float32, numel};
  }
};

bool all_are(const Floats& x, float want) {
  std::vector<float> values(static_cast<size_t>(x.numel));
  runtime().synchronize(*x.storage);
  runtime().cuda().read(values.data(), x.storage->data(), values.size() * 4, *runtime().compute(Device::Cuda));
  return std::all_of(values.begin(), values.end(), [=](float v) { return v == want; });
}

void fill(Stream* stream, const Floats& x, float value) { rz::cuda::enqueue<rz::Fill>({x.view(stream), value}, *stream); }

void copy(Stream* stream, const Floats& to, const Floats& from) {
  rz::cuda::enqueue<rz::Copy>({to.view(stream), from.view(stream)}, *stream);
}

// One stream writes what another one reads, in turn.
void test_events(Stream* one, Stream* other) {
  Floats x(one, kNumel);
  std::vector<Floats> seen;
  for (int i = 0; i < kRounds; ++i) {
    fill(one, x, static_cast<float>(i));
    other->wait(one->record());
    seen.emplace_back(other, kNumel);
    copy(other, seen.back(), x);
    one->wait(other->record());
  }
  bool right = true;
  for (int i = 0; i < kRounds; ++i) right &= all_are(seen[static_cast<size_t>(i)], static_cast<float>(i));
  report("a stream waits for an event of another", right);
}

// Memory that another stream still reads is given back and taken again.
void test_reuse(Stream* one, Stream* other) {
  std::vector<Floats> seen;
  for (int i = 0; i < kRounds; ++i) seen.emplace_back(other, kNumel);
  bool same_memory = false;
  void* last = nullptr;
  for (int i = 0; i < kRounds; ++i) {
    Floats x(one, kNumel);
    same_memory |= x.storage->data() == last;
    last = x.storage->data();
    fill(one, x, static_cast<float>(i));
    other->wait(one->record());
    copy(other, seen[static_cast<size_t>(i)], x);
  }
  bool right = true;
  for (int i = 0; i < kRounds; ++i) right &= all_are(seen[static_cast<size_t>(i)], static_cast<float>(i));
  report("memory is reused after the streams that read it", right && same_memory);
}

// host → device → host, all enqueued before anything is waited for.
void test_across(rz::CpuStream* host, Stream* device) {
  auto at_host = [&] { return runtime().allocate(kNumel * 4, host, MemoryKind::Other); };
  auto source = at_host();
  Floats x(device, kNumel);
  std::vector<std::shared_ptr<rz::Storage>> results;
  for (int i = 0; i < kRounds; ++i) {
    View in{source->data(), DType::Float32, kNumel};
    host->enqueue("fill", [in, i] { rz::cpu::run(rz::Fill{in, static_cast<double>(i)}); });
    runtime().cuda().upload(x.storage->data(), source->data(), kNumel * 4, *host, *device);
    rz::cuda::enqueue<rz::Scale>({x.view(device), x.view(device), {}, 2.0f, false}, *device);
    results.push_back(at_host());
    runtime().cuda().download(results.back()->data(), x.storage->data(), kNumel * 4, *host, *device);
    View out{results.back()->data(), DType::Float32, kNumel};
    host->enqueue("scale", [out] { rz::cpu::run(rz::Scale{out, out, {}, 2.0f, false}); });
  }
  host->synchronize();
  bool right = true;
  for (int i = 0; i < kRounds; ++i) {
    auto* values = static_cast<const float*>(results[static_cast<size_t>(i)]->data());
    right &= std::all_of(values, values + kNumel, [=](float v) { return v == 4.0f * static_cast<float>(i); });
  }
  report("copies between host and device are in order with both", right);
}

// More than the ring of pinned memory holds.
void test_large(rz::CpuStream* host, Stream* device) {
  const int64_t numel = 7'000'001;
  std::vector<float> source(numel), back(numel), read(numel);
  std::iota(source.begin(), source.end(), 0.0f);
  Floats x(device, numel);
  runtime().cuda().upload(x.storage->data(), source.data(), source.size() * 4, *host, *device);
  runtime().cuda().download(back.data(), x.storage->data(), back.size() * 4, *host, *device);
  host->synchronize();
  runtime().cuda().read(read.data(), x.storage->data(), read.size() * 4, *device);
  report("copies larger than the pinned ring", back == source && read == source);
}

// Their kernels are loaded.
void launched_before(Stream* stream) {
  Floats x(stream, kNumel), y(stream, kNumel);
  fill(stream, x, 1);
  copy(stream, y, x);
}

void launched_nowhere_else() {}

// Loading a kernel may wait for the whole device, so no stream may then wait for the host.
void test_first_launch(rz::CpuStream* host, Stream* device) {
  auto& stream = static_cast<rz::cuda::CudaStream&>(*device);
  std::atomic<bool> go = false;
  const auto launch_behind = [&] {
    host->enqueue("held", [&] {
      while (!go) std::this_thread::yield();
    });
    device->wait(host->record());
    stream.enqueue("first", [&] { rz::cuda::launch(launched_nowhere_else, 1, 1, 0, stream); });
    return go.load();
  };
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    go = true;
  });
  const bool waited = launch_behind();
  later.join();
  go = false;
  const bool again = launch_behind();
  go = true;
  device->synchronize();
  report("the first launch of a kernel, and no other, waits until no stream waits for the host", waited && !again);
}

// A reduction that does not end keeps the memory of its gradients from everybody, but not a gather from its own.
void test_gathered_memory(rz::CpuStream* host, Stream* device, Stream* reduces) {
  constexpr size_t kBytes = 4 * kNumel;
  Stream* gathers = runtime().create_stream("gathers", Device::Cuda);
  runtime().allocate(kBytes, gathers, MemoryKind::Unshard);  // a range, for which cudaMalloc would wait for the device
  std::atomic<bool> go = false;
  {
    Floats gradient(device, kNumel);
    host->enqueue("held", [&] {
      while (!go) std::this_thread::yield();
    });
    reduces->wait(host->record());
    gradient.storage->used_on(reduces);
  }
  auto full = runtime().allocate(kBytes, gathers, MemoryKind::Unshard);
  const rz::Event allocated = gathers->record();
  bool is_free = false;
  for (int i = 0; i < 10'000 && !is_free; ++i) is_free = gathers->query(allocated);
  go = true;
  for (Stream* stream : {static_cast<Stream*>(host), reduces, gathers}) stream->synchronize();
  report("a gather does not wait for memory that a reduction still reads", is_free);
}

// Near capacity a block of a new size is made of pages that are free elsewhere, at once, although the device has yet to do what
// used them. Where pages cannot be moved, the device is waited for.
void test_capacity(rz::CpuStream* host, Stream* device, Stream* other) {
  const bool moves = !std::getenv("RANKZERO_EMULATED_WITHOUT_VMM");
  constexpr int64_t kMany = 6 << 20;  // 24 MiB
  auto& cuda = runtime().cuda();
  runtime().synchronize_all();
  cuda.allocator().trim();
  const auto before = static_cast<size_t>(cuda.allocator().stats().reserved);
  cuda.set_memory_limit(before + (size_t{80} << 20));
  Floats seen(other, kNumel);
  launched_before(device);
  std::atomic<bool> go = false;
  {
    Floats one(device, kMany), two(device, kMany);
    const View some{one.storage->data(), DType::Float32, kNumel};
    rz::cuda::enqueue<rz::Fill>({some, 1}, *device);
    device->synchronize();
    host->enqueue("held", [&] {
      while (!go) std::this_thread::yield();
    });
    device->wait(host->record());
    rz::cuda::enqueue<rz::Copy>({seen.view(device), some}, *device);
  }
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(moves ? 200 : 20));
    go = true;
  });
  bool waited = false;
  {
    Floats large(other, 12 << 20);
    waited = go;
    auto& stream = static_cast<rz::cuda::CudaStream&>(*other);
    stream.enqueue("set", [&] { cudaMemsetAsync(large.storage->data(), 0, large.storage->bytes(), stream.handle()); });
    other->synchronize();
  }
  later.join();
  report("pages that are free elsewhere become a block of a new size, without a wait", waited != moves);
  report("and earlier work on them comes first", all_are(seen, 1));
  std::string got;
  try {
    Floats none(other, 20 << 20);
  } catch (const rz::Error& error) {
    got = error.what();
  }
  const bool names = got.find("83886080 bytes of other were asked for after [") != std::string::npos && got.find(" other) and ") != std::string::npos;
  report("a block that is larger than all is refused, with what is held", names, got);
  cuda.set_memory_limit(0);
  Floats again(other, 20 << 20);
  fill(other, Floats(other, kNumel), 1);
}

// What fails on the host fails for whoever waits on the device for it, and nothing hangs.
void test_failure() {
  auto* host = static_cast<rz::CpuStream*>(runtime().create_stream("failing"));
  Stream* device = runtime().create_stream("waiting", Device::Cuda);
  std::vector<float> source(10);
  Floats x(device, 10);
  host->enqueue("break", [] { rz::fail("ERR_TEST", "broken on purpose"); });
  runtime().cuda().upload(x.storage->data(), source.data(), 40, *host, *device);
  std::string got = "nothing";
  try {
    device->synchronize();
  } catch (const rz::Error& error) {
    got = error.code();
  }
  report("a failure of the host reaches the device's stream", got == "ERR_TEST", got);
}

void test_all() {
  if (!device_under_test()) return;
  Stream* device = runtime().compute(Device::Cuda);
  Stream* other = runtime().create_stream("other", Device::Cuda);
  auto* host = static_cast<rz::CpuStream*>(runtime().create_stream("host"));
  test_events(device, other);
  test_reuse(device, other);
  test_across(host, device);
  test_first_launch(host, device);
  test_gathered_memory(host, device, other);
  test_large(host, device);
  test_capacity(host, device, other);
  test_failure();
}
Test registered(test_all);

}  // namespace
