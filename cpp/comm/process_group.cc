#include "comm/process_group.h"

#include <algorithm>
#include <cstring>

#include "comm/device_collectives.h"
#include "core/error.h"

namespace rz::comm {
namespace {

// Plain bytes for the blocking calls.
class HostBytes final : public Storage {
 public:
  HostBytes(size_t bytes, Stream* home) : Storage(nullptr, bytes, Device::Cpu, home), bytes_owned_(std::max<size_t>(bytes, 1)) { data_ = bytes_owned_.data(); }

 private:
  std::vector<std::byte> bytes_owned_;
};

TensorRef host_tensor(int64_t numel, DType dtype, Stream* home) {
  return {std::make_shared<HostBytes>(static_cast<size_t>(numel * size_of(dtype)), home), 0, numel, dtype};
}

void check_cast(const char* op, const TensorRef& out, const TensorRef& in) {
  if (out.dtype != in.dtype && !(is_floating(out.dtype) && is_floating(in.dtype))) {
    fail("ERR_DTYPE", "[", op, "] cannot cast ", name_of(in.dtype), " to ", name_of(out.dtype), ": only floating dtypes are cast");
  }
}

void check_overlap(const char* op, const TensorRef& out, const TensorRef& in, const void* allowed) {
  const auto *a = static_cast<const std::byte*>(out.data()), *b = static_cast<const std::byte*>(in.data());
  if (b == allowed && out.dtype == in.dtype) return;
  if (a < b + in.bytes() && b < a + out.bytes()) fail("ERR_ARGUMENT", "[", op, "] input and output overlap");
}

void check_reduce(const char* op, DType dtype, ReduceOp reduce) {
  if (reduce == ReduceOp::Avg && !is_floating(dtype)) fail("ERR_DTYPE", "[", op, "] avg needs a floating dtype but got ", name_of(dtype));
}

void touch(const char* op, const TensorRef& tensor, Stream* stream) {
  if (!tensor.storage) return;
  if (tensor.storage->device() != stream->device())
    fail("ERR_DEVICE", "[", op, "] a tensor is on device ", name_of(tensor.storage->device()), " but the stream is on ", name_of(stream->device()));
  tensor.storage->used_on(stream);
}

bool on_device(const Stream* stream) { return stream->device() != Device::Cpu; }

}  // namespace

ProcessGroup::ProcessGroup(std::string name, std::vector<int> ranks, int rank) : name_(std::move(name)), ranks_(std::move(ranks)), rank_(rank) {}
ProcessGroup::~ProcessGroup() = default;

std::vector<int> ProcessGroup::ranks_on_host() const {
  std::vector<int> here;
  for (int r = 0; r < size(); ++r)
    if (host_of(r) == host_of(rank())) here.push_back(r);
  return here;
}

DeviceCollectives& ProcessGroup::devices(Stream* stream) {
  if (!devices_) devices_ = make_devices(stream);
  return *devices_;
}

std::unique_ptr<DeviceCollectives> ProcessGroup::make_devices(Stream* stream) {
  if (!host_) fail("ERR_GROUP", "group ", name_, " has no CPU stream to coordinate its devices on");
  return connect_devices(*this, job_state(), host_, stream);
}

void ProcessGroup::close_devices() {
  if (devices_) devices_->close();
  devices_.reset();
}

void ProcessGroup::check_rank(const char* op, const char* what, int rank) const {
  if (rank < 0 || rank >= size()) fail("ERR_ARGUMENT", "[", op, "] ", what, " ", rank, " is not a rank of group ", name_, ", which has ", size());
}

void ProcessGroup::check_members(const std::vector<int>& ranks) const {
  std::vector<int> sorted(ranks);
  std::sort(sorted.begin(), sorted.end());
  if (sorted.empty()) fail("ERR_GROUP", "a group needs at least one rank");
  if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) fail("ERR_GROUP", "a rank is named twice in a new group");
  for (int rank : sorted) check_rank("split", "member", rank);
}

void ProcessGroup::broadcast(TensorRef tensor, int root, Stream* stream) {
  check_rank("broadcast", "root", root);
  touch("broadcast", tensor, stream);
  if (on_device(stream)) return devices(stream).broadcast(Operand(tensor), root, stream);
  do_broadcast(Operand(tensor), root, stream);
}

void ProcessGroup::scatter(TensorRef out, TensorRef in, int root, Stream* stream) {
  check_rank("scatter", "root", root);
  if (rank() == root) {
    if (!in.storage) fail("ERR_ARGUMENT", "[scatter] the root needs an input");
    if (in.numel != out.numel * size()) {
      fail("ERR_SHAPE", "[scatter] root's input must have ", out.numel, " × ", size(), " = ", out.numel * size(), " elements but has ", in.numel);
    }
    check_cast("scatter", out, in);
    if (out.storage != in.storage || !out.storage->whole()) check_overlap("scatter", out, in, nullptr);
  } else {
    in = {};
  }
  touch("scatter", out, stream);
  touch("scatter", in, stream);
  if (on_device(stream)) return devices(stream).scatter(Operand(out), Operand(in), root, stream);
  do_scatter(Operand(out), Operand(in), root, stream);
}

void ProcessGroup::all_reduce(TensorRef tensor, ReduceOp op, Stream* stream) {
  check_reduce("all_reduce", tensor.dtype, op);
  touch("all_reduce", tensor, stream);
  if (on_device(stream)) return devices(stream).all_reduce(Operand(tensor), op, stream);
  do_all_reduce(Operand(tensor), op, stream);
}

void ProcessGroup::all_gather(TensorRef out, TensorRef in, Stream* stream) {
  if (out.numel != in.numel * size()) {
    fail("ERR_SHAPE", "[all_gather] output must have ", in.numel, " × ", size(), " = ", in.numel * size(), " elements but has ", out.numel);
  }
  check_cast("all_gather", out, in);
  check_overlap("all_gather", out, in, static_cast<std::byte*>(out.data()) + rank() * in.numel * size_of(out.dtype));
  touch("all_gather", out, stream);
  touch("all_gather", in, stream);
  if (on_device(stream)) return devices(stream).all_gather(Operand(out), Operand(in), stream);
  do_all_gather(Operand(out), Operand(in), stream);
}

void ProcessGroup::reduce_scatter(TensorRef out, TensorRef in, ReduceOp op, bool accumulate, Stream* stream) {
  if (in.numel != out.numel * size()) {
    fail("ERR_SHAPE", "[reduce_scatter] input must have ", out.numel, " × ", size(), " = ", out.numel * size(), " elements but has ", in.numel);
  }
  check_cast("reduce_scatter", out, in);
  check_reduce("reduce_scatter", in.dtype, op);
  const void* own = static_cast<std::byte*>(in.data()) + rank() * out.numel * size_of(in.dtype);
  if (accumulate || out.data() != own || out.dtype != in.dtype) check_overlap("reduce_scatter", out, in, nullptr);
  touch("reduce_scatter", out, stream);
  touch("reduce_scatter", in, stream);
  if (on_device(stream)) return devices(stream).reduce_scatter(Operand(out), Operand(in), op, accumulate, stream);
  do_reduce_scatter(Operand(out), Operand(in), op, accumulate, stream);
}

void ProcessGroup::check_counts(const char* tensor, int64_t numel, const Counts& counts) const {
  if (static_cast<int>(counts.size()) != size())
    fail("ERR_SHAPE", "[all_to_all] the ", tensor, " needs a count for each of ", size(), " ranks but got ", counts.size());
  int64_t rest = numel;
  for (int64_t count : counts) {
    if (count < 0) fail("ERR_ARGUMENT", "[all_to_all] a count of the ", tensor, " is ", count);
    if (count > rest) fail("ERR_SHAPE", "[all_to_all] the counts of the ", tensor, " add up to more than its ", numel, " elements");
    rest -= count;
  }
  if (rest > 0) fail("ERR_SHAPE", "[all_to_all] the counts of the ", tensor, " must add up to its ", numel, " elements but give ", numel - rest);
}

void ProcessGroup::all_to_all(TensorRef out, TensorRef in, const Counts& send_counts, const Counts& recv_counts, Stream* stream) {
  check_counts("input", in.numel, send_counts);
  check_counts("output", out.numel, recv_counts);
  const int64_t sent = send_counts[static_cast<size_t>(rank())], received = recv_counts[static_cast<size_t>(rank())];
  if (sent != received) fail("ERR_SHAPE", "[all_to_all] rank ", rank(), " sends ", sent, " elements to itself but receives ", received);
  if (out.dtype != in.dtype) fail("ERR_DTYPE", "[all_to_all] output must be ", name_of(in.dtype), ", as the input, but is ", name_of(out.dtype));
  check_overlap("all_to_all", out, in, nullptr);
  touch("all_to_all", out, stream);
  touch("all_to_all", in, stream);
  if (on_device(stream)) return devices(stream).all_to_all(Operand(out), Operand(in), send_counts, recv_counts, stream);
  do_all_to_all(Operand(out), Operand(in), send_counts, recv_counts, stream);
}

void ProcessGroup::send(TensorRef tensor, int to, Stream* stream) {
  check_rank("send", "receiver", to);
  if (to == rank()) fail("ERR_ARGUMENT", "[send] rank ", to, " cannot send to itself");
  touch("send", tensor, stream);
  if (on_device(stream)) return devices(stream).send(Operand(tensor), to, stream);
  do_send(Operand(tensor), to, stream);
}

void ProcessGroup::recv(TensorRef tensor, int from, Stream* stream) {
  check_rank("recv", "sender", from);
  if (from == rank()) fail("ERR_ARGUMENT", "[recv] rank ", from, " cannot receive from itself");
  touch("recv", tensor, stream);
  if (on_device(stream)) return devices(stream).recv(Operand(tensor), from, stream);
  do_recv(Operand(tensor), from, stream);
}

void ProcessGroup::barrier(Stream* stream) {
  if (on_device(stream)) return devices(stream).barrier(stream);
  do_barrier(stream);
}

std::vector<std::string> ProcessGroup::all_gather_bytes(const std::string& bytes, Stream* stream) {
  TensorRef own_size = host_tensor(1, DType::Int64, stream), sizes = host_tensor(size(), DType::Int64, stream);
  *static_cast<int64_t*>(own_size.data()) = static_cast<int64_t>(bytes.size());
  all_gather(sizes, own_size, stream);
  stream->synchronize();
  const int64_t* counts = static_cast<const int64_t*>(sizes.data());
  int64_t longest = *std::max_element(counts, counts + size());
  TensorRef own = host_tensor(longest, DType::UInt8, stream), all = host_tensor(longest * size(), DType::UInt8, stream);
  if (!bytes.empty()) std::memcpy(own.data(), bytes.data(), bytes.size());
  all_gather(all, own, stream);
  stream->synchronize();
  std::vector<std::string> parts;
  for (int r = 0; r < size(); ++r) parts.emplace_back(static_cast<const char*>(all.data()) + r * longest, static_cast<size_t>(counts[r]));
  return parts;
}

std::string ProcessGroup::broadcast_bytes(const std::string& bytes, int root, Stream* stream) {
  TensorRef length = host_tensor(1, DType::Int64, stream);
  *static_cast<int64_t*>(length.data()) = static_cast<int64_t>(bytes.size());
  broadcast(length, root, stream);
  stream->synchronize();
  TensorRef data = host_tensor(*static_cast<int64_t*>(length.data()), DType::UInt8, stream);
  if (rank() == root && !bytes.empty()) std::memcpy(data.data(), bytes.data(), bytes.size());
  broadcast(data, root, stream);
  stream->synchronize();
  return {static_cast<const char*>(data.data()), data.bytes()};
}

}  // namespace rz::comm
