// Watches the NCCL communicators of this process: an error of theirs, a collective that does not end, and the end of the job
// each abort all of them together, so that no stream waits for a peer that will not come. One after the other they could wait
// for each other: an abort may wait for the device, on which the kernel of another communicator waits for its peers.
// The thread that aborts asks the driver nothing: a driver may hold its lock while a kernel is loaded behind a collective whose peer
// is dead, and nothing but an abort ends that. A second thread asks for events, without the mutex.
#pragma once
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "comm/job_state.h"
#include "comm/nccl_api.h"
#include "core/stream.h"

namespace rz::comm {

class NcclWatch {
 public:
  // One for a job, made with its first communicator.
  static std::shared_ptr<NcclWatch> of(std::shared_ptr<JobState> state);
  ~NcclWatch();

  struct Enqueued {
    const char* operation;
    uint64_t sequence;
    Event before, after;  // it runs between them, on a stream of the device
  };
  void add(nccl::Comm comm, std::string group);
  // Around each call that uses the communicator, which is not freed in between. False: it is aborted or about to be.
  bool begin_call(nccl::Comm comm);
  void end_call(nccl::Comm comm);
  void enqueued(nccl::Comm comm, const Enqueued& op);
  // The communicator is about to be destroyed or aborted by its owner. False: it was aborted here already.
  // Waits while events of it are asked for.
  bool remove(nccl::Comm comm);
  JobState& state() { return *state_; }

 private:
  struct Watched {
    std::string group;
    std::deque<Enqueued> running;
    bool has_started = false;
    Clock::time_point started;  // when the first of them was seen to run
    bool in_call = false;
    std::optional<Clock::time_point> failed;  // when an error of its own was first seen
    bool doomed = false, had_work = false, aborted = false;
    Clock::time_point doomed_at;
  };
  explicit NcclWatch(std::shared_ptr<JobState> state);
  void run();
  void ask();
  void ask_about(nccl::Comm comm, std::unique_lock<std::mutex>& lock);
  void refresh(std::unique_lock<std::mutex>& lock);
  bool is_late(nccl::Comm comm, const Watched& watched) const;
  void look(nccl::Comm comm, Watched& watched);
  void raise(const std::string& code, const std::string& text);
  void abort_all();
  void doom(Watched& watched);
  [[noreturn]] void end_process(size_t communicators) const;
  void fail_device(const Watched& watched, const Enqueued& op);

  std::shared_ptr<JobState> state_;
  std::mutex mutex_;
  std::condition_variable stopping_, wanting_, answered_;
  std::map<nccl::Comm, Watched> watched_;
  nccl::Comm asked_ = nullptr;  // whose events are being asked for, since when
  Clock::time_point asked_since_;
  uint64_t rounds_wanted_ = 0, rounds_answered_ = 0;
  bool stop_ = false;
  std::thread thread_, asking_;
};

}  // namespace rz::comm
