// A stream of the device. Ops are launched on the JavaScript thread and run when their turn comes; the other members may be
// called from any thread. An event is a position here as on the CPU: a recorded cudaEvent_t stands for it. While a profile is
// recorded, each op and each wait lies between two events of its own, which are read when everything has run.
//
// A driver's queue is finite, and a call that finds it full blocks with locks held that the threads below CPU streams need too,
// for which the device may be waiting. So the thread that launches waits before that, for an event, where it blocks nobody; and
// no mutex is held during a call of the driver.
#pragma once
#include <cuda_runtime_api.h>

#include <deque>

#include "core/profiler.h"
#include "core/storage.h"
#include "cuda/context.h"

namespace rz {
class CachingAllocator;
}

namespace rz::cuda {

class CudaStream final : public Stream {
 public:
  // `profiler` may be null. `urgent`: its kernels go before those of other streams where both wait for a place on the device.
  CudaStream(int index, std::string name, Context& context, CachingAllocator& allocator, const Profiler* profiler, bool urgent = false);
  ~CudaStream() override;

  Device device() const override { return Device::Cuda; }
  cudaStream_t handle() const { return handle_; }
  Context& context() const { return context_; }

  // `launch` puts work on the stream, now. `op` is a literal: it names the operation in errors.
  template <class Launch>
  void enqueue(const char* op, Launch launch) {
    context_.bind();
    context_.last_op = op;
    Named named(*this, op);
    {
      Timed timed(*this, op, -1);
      TaskScope described(timed.record());
      Command command(*this);
      launch();
    }
    end(op);
  }
  // In its scope one command is put on handle(). Each call of the driver that does so has one, unless it is the only one of an op.
  class Command {
   public:
    explicit Command(CudaStream& stream) : stream_(stream) { stream.make_room(1); }
    ~Command() { stream_.advance(); }
    Command(const Command&) = delete;

   private:
    CudaStream& stream_;
  };
  // Something was put on handle(): an event recorded from now on lies behind it.
  void advance();
  // Returns when the device is so far that `commands` more find a place in its queue; on the thread that launches.
  void make_room(uint64_t commands);
  // Memory for the work that is being enqueued: it may go out of scope as soon as that is done.
  std::shared_ptr<Storage> scratch(size_t bytes);

  Event record() override;
  Event mark() override;
  void wait(const Event& event) override;
  void wait_for_reuse(const Event& event) override { order_behind(event, false); }
  // An event that was only marked is recorded by this, at the end of what is enqueued.
  bool query(const Event& event) const override;
  using Stream::synchronize;
  void synchronize(const Event& event) override;
  void drain(const Event& event) override;
  void complete_log() override;
  void clear_log() override;

 private:
  struct Profiled {
    std::shared_ptr<TaskRecord> record;
    EventBox before, after;
  };
  // While a profile is recorded, what is enqueued in its scope lies between two events. `awaits` as in Profiler::claim. Inside of
  // an op (a wait for its scratch memory) nothing is recorded apart: records of a stream follow one another.
  class Timed {
   public:
    Timed(CudaStream& stream, const char* op, int awaits)
        : stream_(stream), profiled_(stream.is_profiled() && !current_task() ? stream.start_timing(op, awaits) : nullptr) {}
    ~Timed() {
      if (profiled_) stream_.record_time(profiled_->after);
    }
    TaskRecord* record() const { return profiled_ ? profiled_->record.get() : nullptr; }

   private:
    CudaStream& stream_;
    Profiled* profiled_;
  };
  bool is_profiled() const { return profiler_ && profiler_->is_recording(); }
  Profiled* start_timing(const char* op, int awaits);
  cudaError_t record_time(const EventBox& event);
  struct Recorded {
    uint64_t position, commands;
    EventBox event;
  };
  // Of a CPU stream that this one waited for, and whose failure it inherits from `position` on.
  struct HostEvent {
    uint64_t position;
    Event event;
  };
  struct Enqueued {
    uint64_t position;
    const char* op;
  };
  // An op's name is known from before its first command until the device is seen past its last.
  class Named {
   public:
    Named(CudaStream& stream, const char* op);
    ~Named();

   private:
    CudaStream& stream_;
  };
  void end(const char* op);
  void order_behind(const Event& event, bool inherit_failure);
  void order_behind_host(const Event& event, const char* op);
  EventBox recorded_at(uint64_t position) const;
  EventBox record_here() const;
  EventBox oldest_recorded() const;
  void complete(const EventBox& event) const;
  void forget_completed() const;
  bool oldest_host_event(uint64_t position, HostEvent& host) const;
  void forget(const HostEvent& host);
  cudaError_t await(const Event& event);
  [[noreturn]] void fail_with(cudaError_t status) const;

  Context& context_;
  CachingAllocator& allocator_;
  const Profiler* profiler_;
  std::deque<Profiled> profiled_;
  cudaStream_t handle_ = nullptr;
  const bool blocking_;   // wait after each op
  const uint64_t depth_;  // at most so many commands are ahead of the device
  mutable std::mutex mutex_;
  // Positions count what work was enqueued; commands count events too.
  mutable uint64_t enqueued_ = 0, completed_ = 0, commands_ = 0, commands_recorded_ = 0, commands_completed_ = 0;
  mutable std::deque<Recorded> recorded_;  // by position
  mutable std::deque<Enqueued> names_;  // of ops that may still run
  mutable std::deque<HostEvent> host_events_;
};

}  // namespace rz::cuda
