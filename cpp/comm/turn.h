// One enqueued call of a group. If its stream skips it, since an earlier task failed there, the group breaks instead of hanging.
#pragma once
#include <functional>
#include <memory>

#include "comm/process_group.h"
#include "comm/sequencer.h"
#include "core/profiler.h"
#include "core/progress.h"

namespace rz::comm {

class Turn {
 public:
  // On the thread that enqueues. `group` stays alive for it; `state` and `sequencer` are the group's.
  Turn(std::shared_ptr<ProcessGroup> group, JobState& state, Sequencer& sequencer, const char* operation)
      : group_(std::move(group)), state_(state), sequencer_(sequencer), operation_(operation), ticket_(sequencer.take()) {}
  ~Turn() {
    if (ran_) return;
    std::string why = std::string(operation_) + " #" + std::to_string(ticket_) + " was skipped, since an earlier operation on its stream failed";
    sequencer_.break_with(why);
    state_.announce("ERR_PEER", "rank " + std::to_string(state_.rank()) + " failed: " + why);
  }
  Turn(const Turn&) = delete;

  // On the stream's thread: waits for its turn.
  void run(const std::function<void(const Doing&)>& body) {
    ran_ = true;
    Doing doing{operation_, ticket_, group_->name().c_str()};
    try {
      if (state_.aborted()) state_.throw_abort(doing);
      {
        PeerWait waiting;
        sequencer_.wait(state_, doing, ticket_);
      }
      progress::enter(operation_, ticket_);
      body(doing);
      progress::enter(nullptr, ticket_);
      sequencer_.finish(ticket_);
    } catch (const std::exception& error) {
      progress::enter(nullptr, ticket_);
      sequencer_.break_with(error.what());
      state_.announce("ERR_PEER", "rank " + std::to_string(state_.rank()) + " failed in " + doing.text() + ": " + error.what());
      throw;
    }
  }

 private:
  std::shared_ptr<ProcessGroup> group_;
  JobState& state_;
  Sequencer& sequencer_;
  const char* operation_;
  uint64_t ticket_;
  bool ran_ = false;
};

}  // namespace rz::comm
