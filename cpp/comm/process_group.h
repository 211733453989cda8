// A process group: ranks that act together. Every call takes a stream, is checked on the calling thread, enqueued,
// and returns at once; every rank of the group must make the same calls in the same order. One abstract class for
// every implementation; a rank number in a call is a rank of the group. The stream says where the memory is: calls on a
// device's go to the device's collectives.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "comm/reduce.h"
#include "core/storage.h"
#include "core/task_log.h"

namespace rz::comm {

class DeviceCollectives;
class JobState;

// A tensor as an enqueued collective keeps it: the bytes alone. Its storage may be released meanwhile; its memory is
// reused in the order of the streams that were marked as its users.
struct Operand {
  std::byte* data = nullptr;
  DType dtype = DType::Float32;
  int64_t numel = 0;
  int segment = -1;    // where peers can read it
  int64_t offset = 0;  // bytes into the segment
  int64_t whole = 0;   // see Storage::whole

  Operand() = default;
  explicit Operand(const TensorRef& tensor)
      : data(static_cast<std::byte*>(tensor.storage ? tensor.data() : nullptr)),
        dtype(tensor.dtype),
        numel(tensor.numel),
        segment(tensor.storage ? tensor.storage->segment() : -1),
        offset(tensor.offset * size_of(tensor.dtype)),
        whole(tensor.storage ? tensor.storage->whole() : 0) {}
  size_t bytes() const { return static_cast<size_t>(numel * size_of(dtype)); }
  std::byte* at(int64_t element) const { return data + element * size_of(dtype); }
  // For a profile. The bytes of a collective are those of its whole tensor.
  Work work() const { return {0, static_cast<double>(bytes()), data ? "elements" : "", {numel}, dtype}; }
};

// Elements for, or of, each rank of a group.
using Counts = std::vector<int64_t>;

class ProcessGroup : public std::enable_shared_from_this<ProcessGroup> {
 public:
  ProcessGroup(std::string name, std::vector<int> ranks, int rank);
  virtual ~ProcessGroup();
  ProcessGroup(const ProcessGroup&) = delete;

  const std::string& name() const { return name_; }
  int rank() const { return rank_; }
  int size() const { return static_cast<int>(ranks_.size()); }
  const std::vector<int>& ranks() const { return ranks_; }  // of the world, in the group's order
  // What carries tensors of the host, and those of devices.
  virtual const char* backend() const = 0;
  virtual const char* device_backend() const { return size() == 1 ? backend() : "nccl"; }
  // How many hosts its members are on, and which of its ranks on this one, in ascending order.
  virtual int hosts() const { return 1; }
  std::vector<int> ranks_on_host() const;
  // Which of the hosts, numbered in the order of their first ranks, a rank is on.
  virtual int host_of(int) const { return 0; }
  // All members can map each other's memory of the host: allocate_whole works. Memory of devices is never mapped.
  virtual bool can_map() const = 0;

  // The CPU stream on which its ranks coordinate their devices. Set by whoever made the group.
  void coordinate_on(Stream* host) { host_ = host; }
  // Before the job is left: nothing is enqueued any more. On the JavaScript thread.
  void close_devices();

  // Memory that the group's collectives read at peers without a copy.
  virtual std::shared_ptr<Storage> allocate_shared(size_t bytes, Stream* home, MemoryKind kind, bool populate) = 0;

  // Memory that every rank of the group maps: all write and read the same bytes. Blocks until all have it. No pages yet.
  virtual std::shared_ptr<Storage> allocate_whole(size_t bytes, Stream* home, MemoryKind kind) = 0;

  // `tensor` of root replaces everyone's.
  void broadcast(TensorRef tensor, int root, Stream* stream);
  // Rank r gets part r of root's `in`, cast to out's floating dtype. `in` counts at root only. Where `in` and `out` are
  // memory that all ranks map, root has written in place, and nothing is copied.
  void scatter(TensorRef out, TensorRef in, int root, Stream* stream);
  // In place; float32 accumulation in rank order, the same bits everywhere.
  void all_reduce(TensorRef tensor, ReduceOp op, Stream* stream);
  // out = every rank's `in`, in rank order, cast to out's floating dtype. In place when `in` is out's part `rank`; of
  // memory that all of them map (allocate_whole) nothing is copied then.
  void all_gather(TensorRef out, TensorRef in, Stream* stream);
  // out (+)= op over ranks of part `rank` of their `in`; float32 accumulation in rank order.
  void reduce_scatter(TensorRef out, TensorRef in, ReduceOp op, bool accumulate, Stream* stream);
  // Rank r gets the next send_counts[r] elements of `in`; `out` is what all ranks send to this one, in rank order:
  // recv_counts[r] elements of rank r. Counts may differ and be 0; ranks that do not agree on one are a mismatch.
  void all_to_all(TensorRef out, TensorRef in, const Counts& send_counts, const Counts& recv_counts, Stream* stream);
  // Small messages are buffered; a large send completes when it was received, and on devices every one.
  void send(TensorRef tensor, int to, Stream* stream);
  void recv(TensorRef tensor, int from, Stream* stream);
  void barrier(Stream* stream);

  // Blocks until all of `ranks` (of this group) made the same call; null for a caller that is not among them.
  virtual std::shared_ptr<ProcessGroup> split(const std::vector<int>& ranks) = 0;

  // Blocking; any sizes. For manifests and names, not for data.
  virtual std::vector<std::string> all_gather_bytes(const std::string& bytes, Stream* stream);
  virtual std::string broadcast_bytes(const std::string& bytes, int root, Stream* stream);

 protected:
  virtual void do_broadcast(Operand tensor, int root, Stream* stream) = 0;
  virtual void do_scatter(Operand out, Operand in, int root, Stream* stream) = 0;
  virtual void do_all_reduce(Operand tensor, ReduceOp op, Stream* stream) = 0;
  virtual void do_all_gather(Operand out, Operand in, Stream* stream) = 0;
  virtual void do_reduce_scatter(Operand out, Operand in, ReduceOp op, bool accumulate, Stream* stream) = 0;
  virtual void do_all_to_all(Operand out, Operand in, Counts send_counts, Counts recv_counts, Stream* stream) = 0;
  virtual void do_send(Operand tensor, int to, Stream* stream) = 0;
  virtual void do_recv(Operand tensor, int from, Stream* stream) = 0;
  virtual void do_barrier(Stream* stream) = 0;
  // Its collectives on devices, at the first call on `stream` of one.
  virtual std::unique_ptr<DeviceCollectives> make_devices(Stream* stream);
  // Null for a group of one rank.
  virtual std::shared_ptr<JobState> job_state() const { return nullptr; }
  // The members of a split: their ranks in this group, checked. Errors: ERR_GROUP.
  void check_members(const std::vector<int>& ranks) const;

 private:
  void check_rank(const char* op, const char* what, int rank) const;
  void check_counts(const char* tensor, int64_t numel, const Counts& counts) const;
  DeviceCollectives& devices(Stream* stream);

  std::string name_;
  std::vector<int> ranks_;
  int rank_;
  Stream* host_ = nullptr;
  std::unique_ptr<DeviceCollectives> devices_;
};

}  // namespace rz::comm
