#include "comm/nccl_watch.h"

#include <pthread.h>
#include <unistd.h>

#include <cstdio>
#include <vector>

#include "cuda/stream.h"

namespace rz::comm {

constexpr auto kPatience = std::chrono::seconds(1);
// A peer that ended is an error of the job too, which names the rank: that one comes first, if it comes soon.
constexpr auto kJobsTurn = std::chrono::seconds(3);

std::shared_ptr<NcclWatch> NcclWatch::of(std::shared_ptr<JobState> state) {
  static std::mutex mutex;
  static std::map<JobState*, std::weak_ptr<NcclWatch>> watches;
  std::lock_guard lock(mutex);
  std::erase_if(watches, [](auto& entry) { return entry.second.expired(); });
  auto& known = watches[state.get()];
  std::shared_ptr<NcclWatch> watch = known.lock();
  if (!watch) known = watch = std::shared_ptr<NcclWatch>(new NcclWatch(std::move(state)));
  return watch;
}

NcclWatch::NcclWatch(std::shared_ptr<JobState> state) : state_(std::move(state)) {
  thread_ = std::thread([this] { run(); });
  pthread_setname_np(thread_.native_handle(), "rz-nccl-watch");
}

NcclWatch::~NcclWatch() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  stopping_.notify_all();
  thread_.join();
}

void NcclWatch::add(nccl::Comm comm, std::string group) {
  std::lock_guard lock(mutex_);
  watched_[comm].group = std::move(group);
}

bool NcclWatch::begin_call(nccl::Comm comm) {
  std::lock_guard lock(mutex_);
  Watched& watched = watched_.at(comm);
  return watched.in_call = !watched.doomed;
}

void NcclWatch::end_call(nccl::Comm comm) {
  std::lock_guard lock(mutex_);
  watched_.at(comm).in_call = false;
}

void NcclWatch::enqueued(nccl::Comm comm, const Enqueued& op) {
  std::lock_guard lock(mutex_);
  Watched& watched = watched_.at(comm);
  if (watched.doomed) fail_device(watched, op);
  else watched.running.push_back(op);
}

bool NcclWatch::remove(nccl::Comm comm) {
  std::lock_guard lock(mutex_);
  bool aborted = watched_.at(comm).aborted;
  watched_.erase(comm);
  return !aborted;
}

void NcclWatch::run() {
  std::unique_lock lock(mutex_);
  while (!stop_) {
    for (auto& [comm, watched] : watched_) {
      if (!state_->aborted()) look(comm, watched);
    }
    if (state_->aborted()) abort_all();
    stopping_.wait_for(lock, std::chrono::milliseconds(100), [&] { return stop_; });
  }
}

// With the mutex.
void NcclWatch::look(nccl::Comm comm, Watched& watched) {
  const Nccl& api = nccl_api();
  int error = 0;
  if (int asked = api.CommGetAsyncError(comm, &error)) error = asked;
  if (error != 0 && error != nccl::kInProgress) {
    if (!watched.failed) watched.failed = Clock::now();
    if (Clock::now() - *watched.failed < kJobsTurn) return;
    std::string text = "NCCL on rank " + std::to_string(state_->rank()) + ", group " + watched.group + ": " + api.GetErrorString(error);
    if (api.GetLastError) text += std::string("; ") + api.GetLastError(comm);
    return raise("ERR_NCCL", text);
  }
  forget_ended(watched);
  if (watched.running.empty()) return;
  const Enqueued& op = watched.running.front();
  if (!watched.has_started) {
    if (!op.before.stream->query(op.before)) return;  // work of this rank comes first
    watched.has_started = true;
    watched.started = Clock::now();
  }
  if (Clock::now() - watched.started < std::chrono::duration<double>(state_->timeout())) return;
  std::string text = "rank " + std::to_string(state_->rank()) + " waited " + std::to_string(static_cast<long>(state_->timeout())) + " s in " +
                     op.operation + " #" + std::to_string(op.sequence) + " of group " + watched.group + " on the device; a rank of the group did not come";
  raise("ERR_TIMEOUT", text);
}

void NcclWatch::forget_ended(Watched& watched) {
  auto& running = watched.running;
  while (!running.empty() && running.front().after.stream->query(running.front().after)) {
    running.pop_front();
    watched.has_started = false;
  }
}

void NcclWatch::raise(const std::string& code, const std::string& text) {
  state_->announce(code, text);
  state_->abort(code, text);
}

// Ends what runs, and frees the communicators: not under a call that uses one, unless that call itself waits for a peer. With
// the mutex.
void NcclWatch::abort_all() {
  std::vector<nccl::Comm> alive;
  bool is_used = false, has_work = false;
  for (auto& [comm, watched] : watched_) {
    if (watched.aborted) continue;
    if (!watched.doomed) doom(watched);
    if (watched.in_call && Clock::now() - watched.doomed_at < kPatience) is_used = true;
    has_work |= watched.had_work;
    alive.push_back(comm);
  }
  if (alive.empty() || is_used) return;
  const Nccl& api = nccl_api();
  if (has_work && alive.size() > 1 && api.version < nccl::kAbortsInGroups) end_process(alive.size());
  for (nccl::Comm comm : alive) watched_.at(comm).aborted = true;
  in_group(api, [&] {
    for (nccl::Comm comm : alive) api.CommAbort(comm);
    return 0;
  });
}

// Whoever waits for the device would wait on.
void NcclWatch::end_process(size_t communicators) const {
  try {
    state_->throw_abort({"collectives on the device"});
  } catch (const Error& error) {
    std::fprintf(stderr, "rankzero: %s: %s. The process ends here: NCCL %s cannot abort its %zu communicators together, 2.22 could\n",
                 error.code().c_str(), error.what(), nccl_api().report.version.c_str(), communicators);
  }
  // If this process serves the store, the others are to hear the error from it before they see it die.
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  _exit(1);
}

void NcclWatch::doom(Watched& watched) {
  watched.doomed = true;
  watched.doomed_at = Clock::now();
  forget_ended(watched);
  watched.had_work = !watched.running.empty();
  if (watched.had_work) fail_device(watched, watched.running.front());
  watched.running.clear();
}

// Its stream will go on without the values, so whoever waits for the device gets the error.
void NcclWatch::fail_device(const Watched& watched, const Enqueued& op) {
  try {
    state_->throw_abort({op.operation, op.sequence, watched.group.c_str()});
  } catch (...) {
    static_cast<cuda::CudaStream*>(op.after.stream)->context().fail(std::current_exception());
  }
}

}  // namespace rz::comm
