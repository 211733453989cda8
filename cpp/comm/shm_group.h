// Collectives of CPU ranks on one host through shared memory. A collective is a number of rounds: each rank makes data
// visible, publishes the round, and waits for all others. Peers read shared storages in place (one pass, and a last
// round before the owner goes on); private memory goes through a double-buffered mailbox of fixed size, where reuse is
// safe because a rank that published round r+1 has read everything of round r.
#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "comm/job.h"
#include "comm/sequencer.h"
#include "comm/shm_control.h"

namespace rz::comm {

class ShmGroup final : public ProcessGroup {
 public:
  // Blocks until all ranks (of the world) have called.
  static std::shared_ptr<ShmGroup> create(std::shared_ptr<Job> job, const std::string& key, const std::string& title, std::vector<int> ranks,
                                          std::shared_ptr<SharedPool> pool);
  ~ShmGroup() override;

  const char* backend() const override { return "shm"; }
  bool can_map() const override { return true; }
  std::shared_ptr<Storage> allocate_shared(size_t bytes, Stream* home, MemoryKind kind, bool populate) override;
  std::shared_ptr<Storage> allocate_whole(size_t bytes, Stream* home, MemoryKind kind) override;
  std::shared_ptr<ProcessGroup> split(const std::vector<int>& ranks) override;
  // Waits until the peers have read everything this rank published.
  void quiesce() noexcept;

 protected:
  void do_broadcast(Operand tensor, int root, Stream* stream) override;
  void do_scatter(Operand out, Operand in, int root, Stream* stream) override;
  void do_all_reduce(Operand tensor, ReduceOp op, Stream* stream) override;
  void do_all_gather(Operand out, Operand in, Stream* stream) override;
  void do_reduce_scatter(Operand out, Operand in, ReduceOp op, bool accumulate, Stream* stream) override;
  void do_all_to_all(Operand out, Operand in, Counts send_counts, Counts recv_counts, Stream* stream) override;
  void do_send(Operand tensor, int to, Stream* stream) override;
  void do_recv(Operand tensor, int from, Stream* stream) override;
  void do_barrier(Stream* stream) override;

  std::shared_ptr<JobState> job_state() const override { return job_->shared_state(); }

 private:
  friend class Window;
  friend class HostsGroup;
  ShmGroup(std::shared_ptr<Job> job, std::string title, std::vector<int> ranks, int rank, std::shared_ptr<SharedPool> pool);
  void attach(const std::string& key);
  void submit(Sequencer& sequencer, const char* operation, Stream* stream, std::function<void(const Doing&)> body);

  // `whole` is what a profile shows of the call.
  void submit_collective(const char* operation, Stream* stream, const Operand& whole, std::function<void(const Doing&)> body);

  // On a stream's thread, one collective at a time.
  void run_broadcast(const Doing& doing, const Operand& tensor, int root);
  void run_scatter(const Doing& doing, const Operand& out, const Operand& in, int root);
  void run_all_reduce(const Doing& doing, const Operand& tensor, ReduceOp op);
  void reduce_in_place(const Doing& doing, const Operand& tensor, ReduceOp op);
  void run_all_gather(const Doing& doing, const Operand& out, const Operand& in);
  void share_whole(const Doing& doing, Header own, const Operand& out);
  void run_reduce_scatter(const Doing& doing, const Operand& out, const Operand& in, ReduceOp op, bool accumulate);
  void run_all_to_all(const Doing& doing, const Operand& out, const Operand& in, const Counts& send_counts, const Counts& recv_counts);
  void run_barrier(const Doing& doing);
  void run_send(const Doing& doing, const Operand& tensor, int to);
  void run_recv(const Doing& doing, const Operand& tensor, int from);

  static Header header(const Doing& doing, Operation operation, int64_t numel, DType in, DType out, int root = 0, ReduceOp reduce = ReduceOp::Sum) {
    return header_of_call(doing.sequence, operation, numel, in, out, root, reduce);
  }
  // Names the memory that peers may read; small messages are cheaper through the mailbox.
  void expose(Header& header, const Operand& tensor) const;
  void announce(const Header& header);
  // Publishes a round and waits until all have; `enter` also compares the headers of the collective.
  void enter(const Doing& doing, const Header& own);
  void sync(const Doing& doing);
  void publish();
  void await(const Doing& doing, int peer);
  void compare(const Doing& doing, const Header& own, int peer);
  // What `a` sends `b` must be what `b` expects, and the other way round.
  void compare_counts(const Doing& doing, int a, int b);
  [[noreturn]] void raise_mismatch(const Doing& doing, const std::string& text);
  const Header& header_of(int peer, const Doing& doing) const { return control_.slot(peer).headers[doing.sequence & 1]; }
  bool any_private(const Doing& doing) const;
  bool any_direct(const Doing& doing) const;
  void wait_channel(const Doing& doing, int peer, Channel& channel, std::atomic<uint32_t>& word, const std::function<bool()>& ready);

  // The half of the own mailbox that is written next, with pages for `bytes`.
  std::byte* mailbox(size_t bytes);
  const std::byte* mailbox_of(int peer, const Doing& doing);
  // Where `peer` exposes byte `direct_at` of its storage, or byte `mailbox_at` of its mailbox.
  const std::byte* read(int peer, const Doing& doing, int64_t direct_at, int64_t mailbox_at);
  void next_mail() { ++mail_; }
  template <class Ready>
  void spin_then_wait(const Doing& doing, int peer, std::atomic<uint32_t>& word, std::atomic<uint32_t>& sleepers, Ready ready);
  int world_rank(int peer) const { return ranks()[static_cast<size_t>(peer)]; }
  JobState& state() const { return job_->state(); }

  std::shared_ptr<Job> job_;
  std::shared_ptr<SharedPool> pool_;
  int spin_;  // iterations before sleeping
  int control_segment_ = 0;
  std::unique_ptr<Mapping> control_mapping_;
  Control control_{nullptr, 0};
  Sequencer collectives_;
  std::vector<std::unique_ptr<Sequencer>> sends_, receives_;  // by peer
  uint32_t round_ = 0, mail_ = 0;
  uint64_t windows_ = 0;
  SegmentTable::Owned mailbox_{0, nullptr, 0};
  size_t mailbox_populated_[2] = {0, 0};
  std::vector<SegmentTable::Owned> parcels_;  // by receiver
};

}  // namespace rz::comm
