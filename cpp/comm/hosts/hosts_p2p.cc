// Messages between two ranks of a HostsGroup, and all_to_all, which is a message between each two. Neighbours on a host send
// through its shared memory.
#include <cstring>
#include <numeric>

#include "comm/hosts/hosts_group.h"
#include "comm/shm_limits.h"

namespace rz::comm {
namespace {

constexpr size_t kBuffered = 2 * kParcel;  // as the channels of a host

std::string text(const char* what, int64_t numel, DType dtype, int rank) {
  return std::string(what) + "(" + std::to_string(numel) + " × " + name_of(dtype) + ") on rank " + std::to_string(rank);
}

}  // namespace

void HostsGroup::do_send(Operand tensor, int to, Stream* stream) {
  submit(*sends_[static_cast<size_t>(to)], "send", stream, tensor.work(), [this, tensor, to](const Doing& doing) { run_send(doing, tensor, to); });
}

void HostsGroup::do_recv(Operand tensor, int from, Stream* stream) {
  submit(*receives_[static_cast<size_t>(from)], "recv", stream, tensor.work(), [this, tensor, from](const Doing& doing) { run_recv(doing, tensor, from); });
}

void HostsGroup::run_send(const Doing& doing, const Operand& tensor, int to) {
  if (layout_.host_of(to) == own_host()) return local_->run_send(doing, tensor, layout_.index_of(to));
  link().ensure(doing, {world_rank(to)});
  auto& waiting = buffered_[static_cast<size_t>(to)];
  if (waiting.size() >= 2) {
    link().wait(doing, waiting.front().message);
    waiting.pop_front();
  }
  const Notice notice{doing.sequence, tensor.numel, static_cast<uint64_t>(tensor.dtype)};
  Buffered& own = waiting.emplace_back();
  const bool small = tensor.bytes() <= kBuffered;
  own.bytes.assign(reinterpret_cast<const char*>(&notice), sizeof notice);
  if (small) own.bytes.append(reinterpret_cast<const char*>(tensor.data), tensor.bytes());
  own.notice = send(to, own.bytes.data(), sizeof notice, kNotice);
  own.message = send(to, small ? static_cast<const void*>(own.bytes.data() + sizeof notice) : tensor.data, tensor.bytes(), kMessage);
  if (small) return;
  link().wait(doing, own.message);
  waiting.pop_back();
}

void HostsGroup::run_recv(const Doing& doing, const Operand& tensor, int from) {
  if (layout_.host_of(from) == own_host()) return local_->run_recv(doing, tensor, layout_.index_of(from));
  link().ensure(doing, {world_rank(from)});
  Notice notice{};
  LinkMessage arriving = receive(from, &notice, sizeof notice, kNotice);
  link().wait(doing, arriving);
  const auto dtype = static_cast<DType>(notice.dtype);
  if (notice.numel != tensor.numel || dtype != tensor.dtype || notice.sequence != doing.sequence) {
    state().raise("ERR_COLLECTIVE_MISMATCH", "message #" + std::to_string(doing.sequence) + " of group " + name() + " is " +
                                                 text("send", notice.numel, dtype, world_rank(from)) + " but " + text("recv", tensor.numel, tensor.dtype, world_rank(rank())));
  }
  LinkMessage message = receive(from, tensor.data, tensor.bytes(), kMessage);
  link().wait(doing, message);
}

void HostsGroup::do_all_to_all(Operand out, Operand in, Counts send_counts, Counts recv_counts, Stream* stream) {
  submit(collectives_, "all_to_all", stream, in.work(), [this, out, in, send_counts = std::move(send_counts), recv_counts = std::move(recv_counts)](const Doing& doing) {
    run_all_to_all(doing, out, in, send_counts, recv_counts);
  });
}

void HostsGroup::run_all_to_all(const Doing& doing, const Operand& out, const Operand& in, const Counts& send_counts, const Counts& recv_counts) {
  std::vector<int> others;
  for (int r = 0; r < size(); ++r)
    if (r != rank()) others.push_back(r);
  greet(doing, header(doing, Operation::AllToAll, 0, in.dtype, out.dtype), others);
  // Each pair says how much it expects, before anything is sent.
  std::vector<int64_t> wanted(static_cast<size_t>(size()));
  std::vector<LinkMessage> messages;
  for (int r : others) messages.push_back(receive(r, &wanted[static_cast<size_t>(r)], sizeof(int64_t)));
  for (int r : others) messages.push_back(send(r, &recv_counts[static_cast<size_t>(r)], sizeof(int64_t)));
  wait(doing, messages);
  for (int r : others) {
    const int64_t sent = send_counts[static_cast<size_t>(r)], expected = wanted[static_cast<size_t>(r)];
    if (sent == expected) continue;
    state().raise("ERR_COLLECTIVE_MISMATCH", "the ranks of group " + name() + " made different calls: collective #" + std::to_string(doing.sequence) +
                                                 " is all_to_all that sends " + std::to_string(sent) + " elements from rank " + std::to_string(world_rank(rank())) + " to rank " +
                                                 std::to_string(world_rank(r)) + ", which expects " + std::to_string(expected));
  }
  auto before = [](const Counts& counts, int r) { return std::accumulate(counts.begin(), counts.begin() + r, int64_t{0}); };
  auto bytes = [&](const Counts& counts, int r) { return static_cast<size_t>(counts[static_cast<size_t>(r)] * size_of(in.dtype)); };
  for (int r : others) messages.push_back(receive(r, out.at(before(recv_counts, r)), bytes(recv_counts, r)));
  for (int r : others) messages.push_back(send(r, in.at(before(send_counts, r)), bytes(send_counts, r)));
  if (bytes(send_counts, rank()) > 0) std::memcpy(out.at(before(recv_counts, rank())), in.at(before(send_counts, rank())), bytes(send_counts, rank()));
  wait(doing, messages);
}

}  // namespace rz::comm
