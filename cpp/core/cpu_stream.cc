#include "core/cpu_stream.h"

#include <pthread.h>

#include "core/error.h"

namespace rz {

constexpr int kYields = 64;  // some ten microseconds

CpuStream::CpuStream(int index, std::string name, Profiler* profiler) : Stream(index, std::move(name)), profiler_(profiler) {
  worker_ = std::thread([this] { work(); });
  pthread_setname_np(worker_.native_handle(), ("rz-" + this->name()).substr(0, 15).c_str());
}

CpuStream::~CpuStream() {
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
  }
  queued_.notify_one();
  worker_.join();
}

void CpuStream::enqueue(const char* op, std::function<void()> run) { push(op, std::move(run), -1); }

void CpuStream::push(const char* op, std::function<void()> run, int awaits) {
  if (dry_) return;
  std::shared_ptr<TaskRecord> record;
  if (profiler_->is_recording()) record = profiler_->claim(log_, op, awaits);
  bool wake;
  {
    std::lock_guard lock(mutex_);
    tasks_.push_back({op, std::move(run), std::move(record)});
    ++enqueued_;
    wake = idle_;
  }
  if (wake) queued_.notify_one();
}

Event CpuStream::record() {
  std::lock_guard lock(mutex_);
  return {this, enqueued_};
}

void CpuStream::wait(const Event& event) {
  if (!event.stream || event.stream == this || event.stream->query(event)) return;
  push("wait", [event] { event.stream->synchronize(event); }, event.stream->index());
}

void CpuStream::wait_for_reuse(const Event& event) {
  Stream* stream = event.stream;
  if (!stream || stream == this) return;
  if (stream->device() == Device::Cpu ? static_cast<CpuStream*>(stream)->reached(event) : stream->query(event)) return;
  push("wait for reuse", [stream, event] { stream->drain(event); }, stream->index());
}

bool CpuStream::query(const Event& event) const {
  if (!reached(event)) return false;
  std::lock_guard lock(mutex_);
  return !failure_;  // a failed stream never counts as done: the waiter must see the error
}

void CpuStream::synchronize(const Event& event) {
  if (event.stream != this) {
    if (event.stream) event.stream->synchronize(event);
    return;
  }
  if (std::exception_ptr failure = await(event)) std::rethrow_exception(failure);
}

std::exception_ptr CpuStream::await(const Event& event) {
  // Falling asleep and waking up take longer than most short work.
  for (int i = 0; i < kYields && !reached(event); ++i) std::this_thread::yield();
  std::unique_lock lock(mutex_);
  if (!reached(event)) {
    auto awaited = awaited_.insert(event.position);
    finished_.wait(lock, [&] { return reached(event); });
    awaited_.erase(awaited);
  }
  return failure_;
}

void CpuStream::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    idle_ = true;
    queued_.wait(lock, [&] { return closing_ || !tasks_.empty(); });
    idle_ = false;
    if (tasks_.empty()) return;
    Task task = std::move(tasks_.front());
    tasks_.pop_front();
    bool skip = failure_ != nullptr;
    lock.unlock();
    std::exception_ptr error;
    TaskRecord* record = skip ? nullptr : task.record.get();
    if (record) {
      detail::current_task = record;
      record->start = clock_now();
    }
    if (!skip) {
      try {
        task.run();
      } catch (const Error&) {
        error = std::current_exception();
      } catch (const std::exception& e) {
        error = std::make_exception_ptr(Error("ERR_DEVICE", std::string("[") + task.op + "] " + e.what()));
      }
    }
    task.run = nullptr;  // captured storages are released before the op counts as done
    if (record) {
      record->end = clock_now();
      detail::current_task = nullptr;
    }
    lock.lock();
    if (error && !failure_) failure_ = error;
    uint64_t done = completed_.fetch_add(1, std::memory_order_release) + 1;
    if (!awaited_.empty() && *awaited_.begin() <= done) finished_.notify_all();
  }
}

}  // namespace rz
