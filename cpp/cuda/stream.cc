#include "cuda/stream.h"

#include <algorithm>
#include <cmath>

#include "core/allocator.h"
#include "core/cpu_stream.h"
#include "core/settings.h"
#include "cuda/check.h"
#include "cuda/driver.h"

namespace rz::cuda {
namespace {

constexpr size_t kNames = 4096;

// Raises a signal when it goes out of existence: a CPU stream destroys the closure of a task also when it skips the task
// after a failure, so the device never waits for ever. It never falls: threads that wait at once may enqueue in another order
// than they drew their values.
class RaiseOnDestruction {
 public:
  RaiseOnDestruction(std::atomic<uint64_t>& signal, uint64_t value) : signal_(signal), value_(value) {}
  ~RaiseOnDestruction() {
    uint64_t now = signal_.load(std::memory_order_relaxed);
    while (now < value_ && !signal_.compare_exchange_weak(now, value_, std::memory_order_release, std::memory_order_relaxed)) {
    }
  }

 private:
  std::atomic<uint64_t>& signal_;
  uint64_t value_;
};

}  // namespace

CudaStream::CudaStream(int index, std::string name, Context& context, CachingAllocator& allocator, const Profiler* profiler, bool urgent)
    : Stream(index, std::move(name)),
      context_(context),
      allocator_(allocator),
      profiler_(profiler),
      blocking_(settings().blocking_launches),
      depth_(static_cast<uint64_t>(settings().cuda_queue)) {
  context_.bind();
  int lowest = 0, highest = 0;
  check(cudaDeviceGetStreamPriorityRange(&lowest, &highest), "asking for priorities");
  check(cudaStreamCreateWithPriority(&handle_, cudaStreamNonBlocking, urgent ? highest : lowest), "creating a stream");
}

CudaStream::~CudaStream() {
  recorded_.clear();
  profiled_.clear();
  cudaStreamDestroy(handle_);
}

CudaStream::Named::Named(CudaStream& stream, const char* op) : stream_(stream) {
  std::lock_guard lock(stream.mutex_);
  if (stream.names_.size() == kNames) stream.names_.pop_front();
  stream.names_.push_back({UINT64_MAX, op});
}

CudaStream::Named::~Named() {
  std::lock_guard lock(stream_.mutex_);
  stream_.names_.back().position = stream_.enqueued_;
}

void CudaStream::end(const char* op) {
  cudaError_t status = cudaGetLastError();
  if (status == cudaSuccess && blocking_) status = cudaStreamSynchronize(handle_);
  if (status != cudaSuccess) fail("ERR_CUDA", "[", op, "] ", cudaGetErrorString(status), " (", cudaGetErrorName(status), ")");
}

void CudaStream::advance() {
  std::lock_guard lock(mutex_);
  ++enqueued_;
  ++commands_;
}

// There is an event for every quarter of the queue, so that there is one to wait for. What fails here fails where the values are
// waited for.
void CudaStream::make_room(uint64_t commands) {
  const uint64_t most = depth_ - std::min(commands, depth_ / 2);
  auto ahead_of = [&](uint64_t from) {
    std::lock_guard lock(mutex_);
    return commands_ - (from == 0 ? commands_recorded_ : commands_completed_);
  };
  if (ahead_of(0) >= depth_ / 4) record_here();
  while (ahead_of(1) > most) {
    forget_completed();
    if (ahead_of(1) <= most) return;
    EventBox oldest = oldest_recorded();
    if (!oldest || cudaEventSynchronize(oldest.get()) != cudaSuccess) return;
    complete(oldest);
  }
}

std::shared_ptr<Storage> CudaStream::scratch(size_t bytes) { return allocator_.allocate(bytes, this, MemoryKind::Other); }

Event CudaStream::record() {
  context_.bind();
  const Event here = mark();
  recorded_at(here.position);
  return here;
}

Event CudaStream::mark() {
  std::lock_guard lock(mutex_);
  return {this, enqueued_};
}

// The first recorded event at or behind a position, made now if there is none. Null: the position is complete.
EventBox CudaStream::recorded_at(uint64_t position) const {
  {
    std::lock_guard lock(mutex_);
    if (position <= completed_) return nullptr;
    auto found = std::lower_bound(recorded_.begin(), recorded_.end(), position,
                                  [](const Recorded& r, uint64_t p) { return r.position < p; });
    if (found != recorded_.end()) return found->event;
  }
  return record_here();
}

// It stands for what was enqueued before the call, whatever other threads enqueue meanwhile.
EventBox CudaStream::record_here() const {
  EventBox event = context_.event();
  Recorded here{0, 0, event};
  {
    std::lock_guard lock(mutex_);
    here.position = enqueued_;
    here.commands = ++commands_;
  }
  check(cudaEventRecord(event.get(), handle_), "recording an event");
  std::lock_guard lock(mutex_);
  commands_recorded_ = std::max(commands_recorded_, here.commands);
  recorded_.insert(std::upper_bound(recorded_.begin(), recorded_.end(), here.position, [](uint64_t p, const Recorded& r) { return p < r.position; }),
                   std::move(here));
  return event;
}

EventBox CudaStream::oldest_recorded() const {
  std::lock_guard lock(mutex_);
  return recorded_.empty() ? nullptr : recorded_.front().event;
}

// The device is past a recorded event, and so past those before it.
void CudaStream::complete(const EventBox& event) const {
  std::lock_guard lock(mutex_);
  auto found = std::find_if(recorded_.begin(), recorded_.end(), [&](const Recorded& r) { return r.event == event; });
  if (found == recorded_.end()) return;  // another thread saw it first
  completed_ = std::max(completed_, found->position);
  commands_completed_ = std::max(commands_completed_, found->commands);
  recorded_.erase(recorded_.begin(), found + 1);
  while (!names_.empty() && names_.front().position <= completed_) names_.pop_front();
}

void CudaStream::forget_completed() const {
  for (EventBox oldest; (oldest = oldest_recorded()) && cudaEventQuery(oldest.get()) == cudaSuccess;) complete(oldest);
  cudaGetLastError();  // "not ready" is no error
}

void CudaStream::wait(const Event& event) { order_behind(event, true); }

void CudaStream::order_behind(const Event& event, bool inherit_failure) {
  if (!event.stream || event.stream == this) return;
  const char* op = inherit_failure ? "wait" : "wait for reuse";
  context_.bind();
  if (event.stream->device() == Device::Cpu) {
    if (event.stream->query(event)) return;
    order_behind_host(event, op);
    std::lock_guard lock(mutex_);
    if (inherit_failure) host_events_.push_back({enqueued_, event});
    return;
  }
  auto* other = static_cast<CudaStream*>(event.stream);
  EventBox recorded = other->recorded_at(event.position);
  if (!recorded) return;
  Timed timed(*this, op, other->index());
  Command command(*this);
  check(cudaStreamWaitEvent(handle_, recorded.get(), 0), "waiting for an event");
}

// The CPU stream raises a number in pinned memory at its end, which lies behind the event: nothing that is enqueued by now can
// depend on what this stream does later, so waiting a little longer cannot be waiting for ever.
void CudaStream::order_behind_host(const Event& event, const char* op) {
  if (!context_.waits_for_signals()) return event.stream->drain(event);
  auto* host = static_cast<CpuStream*>(event.stream);
  const uint64_t value = context_.next_signal(host->index());
  auto raise = std::make_shared<RaiseOnDestruction>(context_.signal(host->index()), value);
  host->enqueue("signal to device", [raise = std::move(raise)] {});
  Timed timed(*this, op, host->index());
  Command command(*this);
  constexpr unsigned kGreaterOrEqual = 0;
  if (int status = driver().cuStreamWaitValue64(handle_, context_.signal_address(host->index()), value, kGreaterOrEqual))
    fail("ERR_CUDA", "waiting for a CPU stream: cuStreamWaitValue64 returned ", status);
}

bool CudaStream::query(const Event& event) const {
  if (context_.failed()) return false;  // as of a CPU stream: the waiter must see the error
  context_.bind();
  recorded_at(event.position);
  forget_completed();
  std::lock_guard lock(mutex_);
  while (!host_events_.empty() && host_events_.front().event.stream->query(host_events_.front().event)) host_events_.pop_front();
  return event.position <= completed_ && (host_events_.empty() || host_events_.front().position > event.position);
}

cudaError_t CudaStream::await(const Event& event) {
  context_.bind();
  const EventBox recorded = recorded_at(event.position);
  if (!recorded) return cudaSuccess;
  return cudaEventSynchronize(recorded.get());
}

void CudaStream::synchronize(const Event& event) {
  if (event.stream != this) {
    if (event.stream) event.stream->synchronize(event);
    return;
  }
  if (cudaError_t status = await(event)) fail_with(status);
  context_.throw_failure();
  // The device is past them, so asking does not block: a CPU stream may wait here for work that waited for itself.
  for (HostEvent host; oldest_host_event(event.position, host);) {
    host.event.stream->synchronize(host.event);
    forget(host);
  }
}

bool CudaStream::oldest_host_event(uint64_t position, HostEvent& host) const {
  forget_completed();
  std::lock_guard lock(mutex_);
  if (host_events_.empty() || host_events_.front().position > position) return false;
  host = host_events_.front();
  return true;
}

void CudaStream::forget(const HostEvent& host) {
  std::lock_guard lock(mutex_);
  if (!host_events_.empty() && host_events_.front().position == host.position) host_events_.pop_front();
}

void CudaStream::drain(const Event& event) { await(event); }

CudaStream::Profiled* CudaStream::start_timing(const char* op, int awaits) {
  std::shared_ptr<TaskRecord> record = profiler_->claim(log_, op, awaits);
  if (!record) return nullptr;
  Profiled& profiled = profiled_.emplace_back(std::move(record), context_.timed_event(), context_.timed_event());
  check(record_time(profiled.before), "recording an event");
  return &profiled;
}

cudaError_t CudaStream::record_time(const EventBox& event) {
  Command command(*this);
  return cudaEventRecord(event.get(), handle_);
}

// From the last back to the first: the time between two neighbours is short, so that a float holds it well. What never ran
// stays without an end.
void CudaStream::complete_log() {
  if (profiled_.empty()) return;
  context_.bind();
  const Context::Anchor& anchor = context_.anchor(handle_);
  cudaEvent_t later = anchor.event.get();
  int64_t time = anchor.time;
  auto back_to = [&](const EventBox& earlier) {
    float milliseconds = 0;
    if (cudaEventElapsedTime(&milliseconds, earlier.get(), later) != cudaSuccess) return false;
    later = earlier.get();
    time -= std::llround(1e6 * static_cast<double>(milliseconds));
    return true;
  };
  for (auto each = profiled_.rbegin(); each != profiled_.rend(); ++each) {
    if (!back_to(each->after)) break;
    const int64_t end = time;
    if (!back_to(each->before)) break;
    each->record->start = time;
    each->record->end = end;
  }
  cudaGetLastError();
}

void CudaStream::clear_log() {
  profiled_.clear();
  log_.clear();
  context_.forget_anchor();
}

// The device says that something failed, not what: the ops that had not been seen complete are the suspects.
void CudaStream::fail_with(cudaError_t status) const {
  forget_completed();
  std::lock_guard lock(mutex_);
  const char* first = names_.empty() ? "unknown" : names_.front().op;
  const char* last = names_.empty() ? first : names_.back().op;
  fail("ERR_DEVICE", "[", first, "] ", names_.size() > 1 ? "or an op after it, up to [" : "", names_.size() > 1 ? last : "",
       names_.size() > 1 ? "], " : "", "failed on stream ", name(), ": ", cudaGetErrorString(status), " (", cudaGetErrorName(status),
       "). RANKZERO_CUDA_BLOCKING=1 finds the one");
}

}  // namespace rz::cuda
