// The collectives of a process group on memory of its ranks' devices; those on host memory coordinate them. A group makes
// its own at the first call on a stream of a device, which all of its ranks make.
#pragma once
#include <memory>

#include "comm/process_group.h"

namespace rz::comm {

class JobState;

class DeviceCollectives {
 public:
  virtual ~DeviceCollectives() = default;
  virtual const char* backend() const = 0;
  // As those of ProcessGroup, which has checked the arguments. Sums are of the operands' dtype, in the library's order.
  virtual void broadcast(const Operand& tensor, int root, Stream* stream) = 0;
  virtual void scatter(const Operand& out, const Operand& in, int root, Stream* stream) = 0;
  virtual void all_reduce(const Operand& tensor, ReduceOp op, Stream* stream) = 0;
  virtual void all_gather(const Operand& out, const Operand& in, Stream* stream) = 0;
  virtual void reduce_scatter(const Operand& out, const Operand& in, ReduceOp op, bool accumulate, Stream* stream) = 0;
  virtual void all_to_all(const Operand& out, const Operand& in, const Counts& send_counts, const Counts& recv_counts, Stream* stream) = 0;
  virtual void send(const Operand& tensor, int to, Stream* stream) = 0;
  virtual void recv(const Operand& tensor, int from, Stream* stream) = 0;
  virtual void barrier(Stream* stream) = 0;
  // In good order, on the JavaScript thread, when nothing is enqueued any more. Without it the destructor aborts.
  virtual void close() {}
};

// Connects the ranks of `group`, which all call it, and blocks until they are connected: `host` is a CPU stream for what they
// tell each other. `state` is null for a world of one. Errors: ERR_CUDA_UNAVAILABLE where NCCL is missing, with every place
// that was tried; ERR_NCCL; those of the job.
std::unique_ptr<DeviceCollectives> connect_devices(ProcessGroup& group, std::shared_ptr<JobState> state, Stream* host, Stream* device);

}  // namespace rz::comm
