// Collectives of a group by NCCL, one communicator each, on the streams that callers name. Everything but watching happens on
// the JavaScript thread.
#pragma once
#include <string>

#include "comm/device_collectives.h"
#include "comm/nccl_watch.h"
#include "cuda/stream.h"

namespace rz::comm {

class NcclCollectives final : public DeviceCollectives {
 public:
  NcclCollectives(std::string group, int rank, int size, nccl::Comm comm, std::shared_ptr<NcclWatch> watch);
  ~NcclCollectives() override;

  const char* backend() const override { return "nccl"; }
  void broadcast(const Operand& tensor, int root, Stream* stream) override;
  void scatter(const Operand& out, const Operand& in, int root, Stream* stream) override;
  void all_reduce(const Operand& tensor, ReduceOp op, Stream* stream) override;
  void all_gather(const Operand& out, const Operand& in, Stream* stream) override;
  void reduce_scatter(const Operand& out, const Operand& in, ReduceOp op, bool accumulate, Stream* stream) override;
  void all_to_all(const Operand& out, const Operand& in, const Counts& send_counts, const Counts& recv_counts, Stream* stream) override;
  void send(const Operand& tensor, int to, Stream* stream) override;
  void recv(const Operand& tensor, int from, Stream* stream) override;
  void barrier(Stream* stream) override;
  void close() override;

 private:
  // `whole` is what a profile shows of the call.
  template <class Call>
  void enqueue(const char* operation, Stream* stream, const Operand& whole, Call call);
  void check(int result, const char* operation) const;

  std::string group_;
  int rank_, size_;
  nccl::Comm comm_;
  std::shared_ptr<NcclWatch> watch_;
  uint64_t sequence_ = 0;
};

}  // namespace rz::comm
