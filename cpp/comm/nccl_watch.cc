#include "comm/nccl_watch.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <vector>

#include "cuda/stream.h"

namespace rz::comm {

constexpr auto kPause = std::chrono::milliseconds(100);
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
  asking_ = std::thread([this] { ask(); });
  pthread_setname_np(asking_.native_handle(), "rz-nccl-events");
}

NcclWatch::~NcclWatch() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  stopping_.notify_all();
  wanting_.notify_all();
  answered_.notify_all();
  thread_.join();
  asking_.join();
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
  std::unique_lock lock(mutex_);
  answered_.wait(lock, [&] { return asked_ != comm; });
  bool aborted = watched_.at(comm).aborted;
  watched_.erase(comm);
  return !aborted;
}

void NcclWatch::run() {
  const auto any = [this](auto holds) { return std::any_of(watched_.begin(), watched_.end(), holds); };
  std::unique_lock lock(mutex_);
  while (!stop_) {
    if (!state_->aborted()) {
      if (any([&](auto& entry) { return is_late(entry.first, entry.second); })) refresh(lock);
      for (auto& [comm, watched] : watched_)
        if (!state_->aborted()) look(comm, watched);
    }
    if (state_->aborted()) {
      if (any([](auto& entry) { return !entry.second.doomed && !entry.second.running.empty(); })) refresh(lock);
      abort_all();
    }
    stopping_.wait_for(lock, kPause, [&] { return stop_; });
  }
}

// What has ended by now, if the driver says so soon: else what is known must do.
void NcclWatch::refresh(std::unique_lock<std::mutex>& lock) {
  const uint64_t round = ++rounds_wanted_;
  wanting_.notify_all();
  answered_.wait_for(lock, kPatience, [&] { return rounds_answered_ >= round || stop_; });
}

void NcclWatch::ask() {
  std::unique_lock lock(mutex_);
  while (!stop_) {
    const uint64_t round = rounds_wanted_;
    std::vector<nccl::Comm> comms;
    for (const auto& entry : watched_) comms.push_back(entry.first);
    for (nccl::Comm comm : comms) ask_about(comm, lock);
    rounds_answered_ = round;
    answered_.notify_all();
    wanting_.wait_for(lock, kPause, [&] { return stop_ || rounds_wanted_ > rounds_answered_; });
  }
}

// Forgets what has ended, and sees what has begun. The mutex is left while the driver is asked.
void NcclWatch::ask_about(nccl::Comm comm, std::unique_lock<std::mutex>& lock) {
  for (auto at = watched_.find(comm); at != watched_.end() && !at->second.running.empty(); at = watched_.find(comm)) {
    const Enqueued op = at->second.running.front();
    asked_ = comm;
    asked_since_ = Clock::now();
    lock.unlock();
    const bool ended = op.after.stream->query(op.after);
    const bool started = ended || op.before.stream->query(op.before);
    lock.lock();
    asked_ = nullptr;
    answered_.notify_all();
    Watched& watched = at->second;  // it is not removed while it is asked about
    if (watched.running.empty()) return;  // aborted meanwhile
    if (ended) watched.running.pop_front();
    if (started && !ended && !watched.has_started) watched.started = Clock::now();
    watched.has_started = started && !ended;
    if (!ended) return;
  }
}

// Whether its first collective runs, or its event is asked for, for longer than the job waits.
bool NcclWatch::is_late(nccl::Comm comm, const Watched& watched) const {
  if (watched.running.empty()) return false;
  const auto since = [&](Clock::time_point begin) { return Clock::now() - begin >= std::chrono::duration<double>(state_->timeout()); };
  return (watched.has_started && since(watched.started)) || (asked_ == comm && since(asked_since_));
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
  if (!is_late(comm, watched)) return;
  const Enqueued& op = watched.running.front();
  std::string text = "rank " + std::to_string(state_->rank()) + " waited " + std::to_string(static_cast<long>(state_->timeout())) + " s in " +
                     op.operation + " #" + std::to_string(op.sequence) + " of group " + watched.group + " on the device; a rank of the group did not come";
  raise("ERR_TIMEOUT", text);
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
