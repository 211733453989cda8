// Collectives of ranks on several hosts: shared memory within a host, the engine between hosts. Each byte crosses to another host
// once: a rank exchanges with its partners, one on each other host (HostLayout::partner), and what arrives is shown to the
// neighbours on the host. Sums are over the ranks of each host in order, then over the hosts in order, in float32: the same bits on
// every rank; they depend on which ranks share a host.
#pragma once
#include <list>

#include "comm/header.h"
#include "comm/hosts/link.h"
#include "comm/hosts/messages.h"
#include "comm/hosts/window.h"
#include "comm/job.h"
#include "comm/sequencer.h"

namespace rz::comm {

class HostsGroup final : public ProcessGroup {
 public:
  // Blocks until all ranks (of the world) have called. `layout`: of these ranks, in their order.
  static std::shared_ptr<HostsGroup> create(std::shared_ptr<Job> job, const std::string& key, const std::string& title, std::vector<int> ranks,
                                            HostLayout layout, std::shared_ptr<SharedPool> pool);

  const char* backend() const override { return "gloo"; }
  int hosts() const override { return layout_.hosts(); }
  int host_of(int rank) const override { return layout_.host_of(rank); }
  bool can_map() const override { return false; }
  std::shared_ptr<Storage> allocate_shared(size_t bytes, Stream* home, MemoryKind kind, bool populate) override;
  std::shared_ptr<Storage> allocate_whole(size_t bytes, Stream* home, MemoryKind kind) override;
  std::shared_ptr<ProcessGroup> split(const std::vector<int>& ranks) override;
  // Waits until the ranks of this host have read everything that this rank published.
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
  HostsGroup(std::shared_ptr<Job> job, const std::string& key, std::string title, std::vector<int> ranks, int rank, HostLayout layout,
             std::shared_ptr<SharedPool> pool);
  void attach(const std::string& key);
  void submit(Sequencer& sequencer, const char* operation, Stream* stream, Work work, std::function<void(const Doing&)> body);

  // On a stream's thread, one collective at a time.
  void run_broadcast(const Doing& doing, const Operand& tensor, int root);
  void run_scatter(const Doing& doing, const Operand& out, const Operand& in, int root);
  void run_all_reduce(const Doing& doing, const Operand& tensor, ReduceOp op);
  void reduce_small(const Doing& doing, Window& window, const Operand& tensor, ReduceOp op);
  void run_all_gather(const Doing& doing, const Operand& out, const Operand& in);
  void run_reduce_scatter(const Doing& doing, const Operand& out, const Operand& in, ReduceOp op, bool accumulate);
  void run_all_to_all(const Doing& doing, const Operand& out, const Operand& in, const Counts& send_counts, const Counts& recv_counts);
  void run_barrier(const Doing& doing);
  void run_send(const Doing& doing, const Operand& tensor, int to);
  void run_recv(const Doing& doing, const Operand& tensor, int from);

  static Header header(const Doing& doing, Operation operation, int64_t numel, DType in, DType out, int root = 0, ReduceOp reduce = ReduceOp::Sum) {
    return header_of_call(doing.sequence, operation, numel, in, out, root, reduce);
  }
  // Before any data: this rank and each of `peers`, ranks of the group, tell each other what they call. Returns what they said.
  std::vector<Header> greet(const Doing& doing, const Header& own, const std::vector<int>& peers);
  LinkMessage send(int peer, const void* data, size_t bytes, uint64_t channel = kData) { return link().send(world_rank(peer), slot_ + channel, data, bytes); }
  LinkMessage receive(int peer, void* data, size_t bytes, uint64_t channel = kData) {
    return link().receive(world_rank(peer), slot_ + channel, data, bytes);
  }
  void wait(const Doing& doing, std::vector<LinkMessage>& messages);
  // `count` elements reduced over the ranks of this host: those of the others begin at element `place` of what they show, own ones
  // are at `own`. The result is in `scratch`, or is `own` where nobody else is here.
  const std::byte* reduce_host(Window& window, std::byte* scratch, const std::byte* own, int64_t place, DType dtype, int64_t count, ReduceOp op);

  int own_host() const { return layout_.host_of(rank()); }
  int own_index() const { return layout_.index_of(rank()); }
  int num_local() const { return layout_.size_of(own_host()); }
  // See HostLayout.
  std::vector<int> takers() const { return layout_.takers(rank()); }
  std::vector<int> givers() const { return layout_.givers(rank()); }
  std::vector<int> partners() const { return layout_.partners(rank()); }
  std::vector<int> column(int index) const { return layout_.column(rank(), index); }
  // Whose part of a gathered tensor is brought to this host by which of its ranks.
  int bringer(int rank) const { return layout_.host_of(rank) == own_host() ? rank : layout_.partner(own_host(), layout_.index_of(rank)); }
  size_t piece_bytes() const { return comm::piece_bytes(layout_); }
  int world_rank(int peer) const { return ranks()[static_cast<size_t>(peer)]; }
  JobState& state() const { return job_->state(); }
  Link& link() const { return *job_->link(); }
  static std::byte* scratch(std::vector<std::byte>& memory, size_t bytes);

  // Channels of the group on each connection.
  static constexpr uint64_t kGreeting = 0, kData = 1, kReduced = 2, kNotice = 3, kMessage = 4;

  std::shared_ptr<Job> job_;
  std::shared_ptr<SharedPool> pool_;
  HostLayout layout_;
  std::shared_ptr<ShmGroup> local_;  // null where this rank is alone on its host
  uint64_t slot_;
  Sequencer collectives_;
  std::vector<std::unique_ptr<Sequencer>> sends_, receives_;  // by peer
  std::vector<std::byte> outgoing_, incoming_, own_;
  // Small messages whose receiver may not have come yet, by peer.
  struct Buffered {
    std::string bytes;
    LinkMessage notice, message;
  };
  std::vector<std::list<Buffered>> buffered_;
};

}  // namespace rz::comm
