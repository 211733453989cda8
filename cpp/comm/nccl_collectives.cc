#include "comm/nccl_collectives.h"

#include <numeric>
#include <optional>

#include "comm/single_device.h"
#include "ops/dispatch.h"
#include "ops/elementwise.h"

namespace rz::comm {
namespace {

int type_of(DType dtype) {
  switch (dtype) {
    case DType::Float32: return nccl::kFloat32;
    case DType::BFloat16: return nccl::kBFloat16;
    case DType::Float16: return nccl::kFloat16;
    case DType::Int64: return nccl::kInt64;
    case DType::Int32: return nccl::kInt32;
    default: return nccl::kUint8;
  }
}

int op_of(ReduceOp op) {
  constexpr int ops[] = {nccl::kSum, nccl::kAvg, nccl::kMax, nccl::kMin};
  return ops[static_cast<int>(op)];
}

cuda::CudaStream& on(Stream* stream) { return *static_cast<cuda::CudaStream*>(stream); }

Operand part_of(const Operand& whole, int64_t first, int64_t numel) {
  Operand part = whole;
  part.data = whole.at(first);
  part.numel = numel;
  return part;
}

// Memory of the stream's own, for one call.
struct Scratch {
  std::shared_ptr<Storage> storage;
  Operand operand;
  Scratch(int64_t numel, DType dtype, Stream* stream) : storage(on(stream).scratch(static_cast<size_t>(numel * size_of(dtype)))) {
    operand.data = static_cast<std::byte*>(storage->data());
    operand.dtype = dtype;
    operand.numel = numel;
  }
};

}  // namespace

NcclCollectives::NcclCollectives(std::string group, int rank, int size, nccl::Comm comm, std::shared_ptr<NcclWatch> watch)
    : group_(std::move(group)), rank_(rank), size_(size), comm_(comm), watch_(std::move(watch)) {
  watch_->add(comm_, group_);
}

NcclCollectives::~NcclCollectives() {
  if (comm_ && watch_->remove(comm_)) nccl_api().CommAbort(comm_);
}

void NcclCollectives::close() {
  if (comm_ && watch_->remove(comm_)) nccl_api().CommDestroy(comm_);
  comm_ = nullptr;
}

void NcclCollectives::check(int result, const char* operation) const {
  if (result == 0) return;
  const Nccl& api = nccl_api();
  const char* more = api.GetLastError ? api.GetLastError(comm_) : "";
  fail("ERR_NCCL", "[", operation, "] #", sequence_, " of group ", group_, " on rank ", rank_, ": ", api.GetErrorString(result), *more ? "; " : "", more);
}

template <class Call>
void NcclCollectives::enqueue(const char* operation, Stream* stream, const Operand& whole, Call call) {
  Doing doing{operation, ++sequence_, group_.c_str()};
  if (watch_->state().aborted()) watch_->state().throw_abort(doing);
  if (!comm_) fail("ERR_GROUP_CLOSED", "[", operation, "] the process group was used after destroyProcessGroup()");
  // Before the call, since an abort waits until that returns. NCCL connects and loads what it needs when it needs it, which may
  // wait for the device.
  on(stream).context().await_host();
  on(stream).make_room(8);
  Event before = stream->record();
  if (!watch_->begin_call(comm_)) watch_->state().throw_abort(doing);
  on(stream).enqueue(operation, [&] {
    describe(whole.work());
    const int result = call(nccl_api(), on(stream).handle());
    watch_->end_call(comm_);
    check(result, operation);
  });
  watch_->enqueued(comm_, {operation, sequence_, before, stream->record()});
}

void NcclCollectives::broadcast(const Operand& tensor, int root, Stream* stream) {
  enqueue("broadcast", stream, tensor, [&](const Nccl& api, cudaStream_t s) {
    return api.Broadcast(tensor.data, tensor.data, static_cast<size_t>(tensor.numel), type_of(tensor.dtype), root, comm_, s);
  });
}

// Everybody receives its part in the dtype of its output, which is everybody's: root casts.
void NcclCollectives::scatter(const Operand& out, const Operand& in, int root, Stream* stream) {
  const bool is_root = rank_ == root;
  Operand source = in;
  std::optional<Scratch> cast;
  if (is_root && in.dtype != out.dtype) {
    cast.emplace(in.numel, out.dtype, stream);
    copy_on_device(cast->operand, in, stream);
    source = cast->operand;
  }
  const auto count = static_cast<size_t>(out.numel);
  const int type = type_of(out.dtype);
  enqueue("scatter", stream, out, [&](const Nccl& api, cudaStream_t s) {
    if (!is_root) return api.Recv(out.data, count, type, root, comm_, s);
    return in_group(api, [&] {
      int result = 0;
      for (int peer = 0; peer < size_ && result == 0; ++peer) {
        if (peer != root) result = api.Send(source.at(peer * out.numel), count, type, peer, comm_, s);
      }
      return result;
    });
  });
  if (is_root) copy_on_device(out, part_of(source, rank_ * out.numel, out.numel), stream);
}

void NcclCollectives::all_reduce(const Operand& tensor, ReduceOp op, Stream* stream) {
  enqueue("all_reduce", stream, tensor, [&](const Nccl& api, cudaStream_t s) {
    return api.AllReduce(tensor.data, tensor.data, static_cast<size_t>(tensor.numel), type_of(tensor.dtype), op_of(op), comm_, s);
  });
}

void NcclCollectives::all_gather(const Operand& out, const Operand& in, Stream* stream) {
  Operand part = in;
  if (in.dtype != out.dtype) {
    part = part_of(out, rank_ * in.numel, in.numel);
    copy_on_device(part, in, stream);
  }
  enqueue("all_gather", stream, out, [&](const Nccl& api, cudaStream_t s) {
    return api.AllGather(part.data, out.data, static_cast<size_t>(part.numel), type_of(out.dtype), comm_, s);
  });
}

void NcclCollectives::reduce_scatter(const Operand& out, const Operand& in, ReduceOp op, bool accumulate, Stream* stream) {
  const bool direct = !accumulate && out.dtype == in.dtype;
  std::optional<Scratch> apart;
  if (!direct) apart.emplace(out.numel, in.dtype, stream);
  const Operand to = direct ? out : apart->operand;
  enqueue("reduce_scatter", stream, in, [&](const Nccl& api, cudaStream_t s) {
    return api.ReduceScatter(in.data, to.data, static_cast<size_t>(to.numel), type_of(in.dtype), op_of(op), comm_, s);
  });
  if (direct || out.numel == 0) return;
  if (accumulate) cuda::enqueue<Add>(Add{view_of(out), view_of(out), view_of(to)}, *stream);
  else copy_on_device(out, to, stream);
}

// One message for each pair of ranks that has something to say; this rank's own part is a copy.
void NcclCollectives::all_to_all(const Operand& out, const Operand& in, const Counts& send_counts, const Counts& recv_counts, Stream* stream) {
  const int type = type_of(in.dtype);
  auto before = [](const Counts& counts, int r) { return std::accumulate(counts.begin(), counts.begin() + r, int64_t{0}); };
  enqueue("all_to_all", stream, in, [&](const Nccl& api, cudaStream_t s) {
    return in_group(api, [&] {
      int result = 0;
      for (int peer = 0; peer < size_ && result == 0; ++peer) {
        const auto send = static_cast<size_t>(send_counts[static_cast<size_t>(peer)]), receive = static_cast<size_t>(recv_counts[static_cast<size_t>(peer)]);
        if (peer == rank_) continue;
        if (send > 0) result = api.Send(in.at(before(send_counts, peer)), send, type, peer, comm_, s);
        if (receive > 0 && result == 0) result = api.Recv(out.at(before(recv_counts, peer)), receive, type, peer, comm_, s);
      }
      return result;
    });
  });
  const int64_t own = send_counts[static_cast<size_t>(rank_)];
  copy_on_device(part_of(out, before(recv_counts, rank_), own), part_of(in, before(send_counts, rank_), own), stream);
}

void NcclCollectives::send(const Operand& tensor, int to, Stream* stream) {
  enqueue("send", stream, tensor, [&](const Nccl& api, cudaStream_t s) {
    return api.Send(tensor.data, static_cast<size_t>(tensor.numel), type_of(tensor.dtype), to, comm_, s);
  });
}

void NcclCollectives::recv(const Operand& tensor, int from, Stream* stream) {
  enqueue("recv", stream, tensor, [&](const Nccl& api, cudaStream_t s) {
    return api.Recv(tensor.data, static_cast<size_t>(tensor.numel), type_of(tensor.dtype), from, comm_, s);
  });
}

void NcclCollectives::barrier(Stream* stream) {
  Scratch one(1, DType::Int32, stream);
  cuda::enqueue<Fill>(Fill{view_of(one.operand), 0}, *stream);
  all_reduce(one.operand, ReduceOp::Sum, stream);
}

}  // namespace rz::comm
