#include "comm/dry_group.h"

#include <algorithm>

#include "comm/header.h"
#include "comm/hosts/messages.h"
#include "comm/shared_storage.h"

namespace rz::comm {
namespace {

class DryStorage final : public Storage {
 public:
  DryStorage(CpuAllocator& allocator, size_t bytes, size_t counted, Stream* home, MemoryKind kind, bool whole = false)
      : Storage(allocator.dry_address(bytes), bytes, Device::Cpu, home), allocator_(allocator.shared_from_this()), counted_(static_cast<int64_t>(counted)), kind_(kind), whole_(whole) {
    allocator_->account(kind_, counted_);
  }
  ~DryStorage() override { retire(); }
  int64_t whole() const override { return whole_; }

 protected:
  void give_back() override { allocator_->account(kind_, -counted_); }

 private:
  std::shared_ptr<CachingAllocator> allocator_;
  int64_t counted_;
  MemoryKind kind_;
  bool whole_;
};

constexpr int64_t kGreeting = sizeof(Header);

int64_t bytes_of(const Operand& tensor) { return static_cast<int64_t>(tensor.bytes()); }

}  // namespace

// Collectives on the devices of such a group. They take the memory that those of NCCL take.
class DryDevices final : public DeviceCollectives {
 public:
  explicit DryDevices(DryGroup& group) : group_(group) {}
  const char* backend() const override { return "dry"; }
  void broadcast(const Operand& tensor, int root, Stream*) override {
    group_.count_ring(WireKind::Broadcast, group_.rank() == root ? bytes_of(tensor) : 0);
  }
  void scatter(const Operand& out, const Operand& in, int root, Stream* stream) override {
    const bool is_root = group_.rank() == root;
    if (is_root && in.dtype != out.dtype) take(in.numel * size_of(out.dtype), stream);
    group_.count(WireKind::Scatter, group_.messages([&](int) { return is_root ? bytes_of(out) : 0; }));
  }
  void all_reduce(const Operand& tensor, ReduceOp, Stream*) override { group_.count_ring(WireKind::AllReduce, 2 * bytes_of(tensor) * (group_.size() - 1) / group_.size()); }
  void all_gather(const Operand& out, const Operand&, Stream*) override { group_.count_ring(WireKind::AllGather, group_.others(out)); }
  void reduce_scatter(const Operand& out, const Operand& in, ReduceOp, bool accumulate, Stream* stream) override {
    if (group_.size() > 1 && (accumulate || out.dtype != in.dtype)) take(out.numel * size_of(in.dtype), stream);
    group_.count_ring(WireKind::ReduceScatter, group_.others(in));
  }
  void all_to_all(const Operand&, const Operand& in, const Counts& send_counts, const Counts&, Stream*) override {
    group_.count(WireKind::AllToAll, group_.messages([&](int r) { return send_counts[static_cast<size_t>(r)] * size_of(in.dtype); }));
  }
  void send(const Operand& tensor, int to, Stream*) override {
    group_.count(WireKind::Send, group_.messages([&](int r) { return r == to ? bytes_of(tensor) : 0; }));
  }
  void recv(const Operand&, int, Stream*) override {}
  void barrier(Stream*) override {}

 private:
  void take(int64_t bytes, Stream* stream) { group_.runtime_->allocate(static_cast<size_t>(bytes), stream, MemoryKind::Other); }
  DryGroup& group_;
};

std::unique_ptr<DeviceCollectives> DryGroup::make_devices(Stream*) { return std::make_unique<DryDevices>(*this); }

std::shared_ptr<Storage> DryGroup::allocate_shared(size_t bytes, Stream* home, MemoryKind kind, bool) {
  return std::make_shared<DryStorage>(runtime_->allocator(), bytes, SharedPool::rounded(bytes), home, kind);
}

std::shared_ptr<Storage> DryGroup::allocate_whole(size_t bytes, Stream* home, MemoryKind kind) {
  if (!can_map()) fail("ERR_GROUP", "the ranks of group ", name(), " are on ", hosts(), " hosts and cannot map one memory");
  return std::make_shared<DryStorage>(runtime_->allocator(), bytes, bytes / static_cast<size_t>(size()), home, kind, true);
}

std::shared_ptr<ProcessGroup> DryGroup::split(const std::vector<int>& members) {
  check_members(members);
  auto own = std::find(members.begin(), members.end(), rank());
  if (own == members.end()) return nullptr;
  std::vector<int> world;
  std::vector<std::string> ids;
  for (int member : members) {
    world.push_back(ranks()[static_cast<size_t>(member)]);
    ids.push_back(std::to_string(layout_.host_of(member)));
  }
  return std::make_shared<DryGroup>(name() + " part", std::move(world), static_cast<int>(own - members.begin()), HostLayout(ids), runtime_, wire_);
}

void WireCounts::add(WireKind kind, Sent sent) {
  calls[static_cast<size_t>(kind)] += 1;
  bytes[static_cast<size_t>(kind)].within += sent.within;
  bytes[static_cast<size_t>(kind)].between += sent.between;
}

void DryGroup::count(WireKind kind, Sent sent) {
  if (size() > 1) wire_->add(kind, sent);
}

void DryGroup::count_ring(WireKind kind, int64_t bytes) {
  const int64_t between = hosts() > 1 ? bytes * hosts() / size() : 0;
  count(kind, {bytes - between, between});
}

template <class Bytes>
Sent DryGroup::messages(Bytes bytes_for) const {
  Sent sent;
  for (int r = 0; r < size(); ++r)
    if (r != rank()) (layout_.host_of(r) == layout_.host_of(rank()) ? sent.within : sent.between) += bytes_for(r);
  return sent;
}

void DryGroup::do_broadcast(Operand tensor, int root, Stream*) {
  const int64_t bytes = bytes_of(tensor);
  if (hosts() == 1) return count(WireKind::Broadcast, {rank() == root ? bytes : 0, 0});
  const int first = layout_.host_of(root), own = layout_.host_of(rank()), position = (own - first + hosts()) % hosts();
  if (rank() != (position == 0 ? root : layout_.partner(own, layout_.index_of(root)))) return count(WireKind::Broadcast, {});
  const bool is_last = position + 1 == hosts();
  count(WireKind::Broadcast, {neighbours() * bytes, (position > 0 ? kGreeting : 0) + (is_last ? 0 : kGreeting + bytes)});
}

void DryGroup::do_scatter(Operand out, Operand in, int root, Stream*) {
  auto is_near = [&](int r) { return layout_.host_of(r) == layout_.host_of(rank()); };
  if (rank() != root) return count(WireKind::Scatter, {0, is_near(root) ? 0 : kGreeting});
  const int64_t part = out.numel * size_of(hosts() == 1 ? out.dtype : in.dtype);
  count(WireKind::Scatter, messages([&](int r) { return part + (is_near(r) ? 0 : kGreeting); }));
}

void DryGroup::do_all_reduce(Operand tensor, ReduceOp, Stream*) {
  const int64_t bytes = bytes_of(tensor);
  if (hosts() == 1) return count(WireKind::AllReduce, {2 * bytes * (size() - 1) / size(), 0});
  if (tensor.bytes() > kSmall) return count(WireKind::AllReduce, large_all_reduce(tensor));
  const bool is_first = layout_.index_of(rank()) == 0;
  count(WireKind::AllReduce, is_first ? Sent{neighbours() * bytes, (hosts() - 1) * (kGreeting + bytes)} : Sent{bytes, 0});
}

// Pieces of a step are alike: one of them stands for all, beside the last.
Sent DryGroup::large_all_reduce(const Operand& tensor) const {
  const int64_t width = size_of(tensor.dtype), columns = layout_.fewest(), owners = hosts() * columns;
  const int64_t step = std::max<int64_t>(owners, static_cast<int64_t>(piece_bytes(layout_)) / width);
  const int64_t host = layout_.host_of(rank()), index = layout_.index_of(rank());
  const bool owns = index < columns;
  Sent sent{0, owns ? (hosts() - 1) * kGreeting : 0};
  auto add = [&](int64_t count, int64_t times) {
    auto length = [&](int64_t owner) { return (count * (owner + 1) / owners - count * owner / owners) * width; };
    int64_t within = 0, between = owns ? (hosts() - 1) * length(host * columns + index) : 0;
    for (int64_t owner = 0; owner < owners; ++owner) {
      const bool is_own_column = owner % columns == index;
      if (is_own_column) within += neighbours() * length(owner);  // taken when it is reduced over the hosts
      else within += length(owner);                               // summed by the neighbour of that column
      if (is_own_column && owner / columns != host) between += length(owner);
    }
    sent.within += times * (neighbours() > 0 ? within : 0);
    sent.between += times * between;
  };
  add(step, tensor.numel / step);
  add(tensor.numel % step, 1);
  return sent;
}

void DryGroup::do_all_gather(Operand out, Operand in, Stream*) {
  if (hosts() == 1) return count(WireKind::AllGather, {others(out), 0});
  const int64_t part = in.numel * size_of(out.dtype), givers = static_cast<int64_t>(layout_.givers(rank()).size());
  const int64_t greetings = static_cast<int64_t>(layout_.partners(rank()).size()) * kGreeting;
  count(WireKind::AllGather, {neighbours() * (1 + givers) * part, (hosts() - 1) * part + greetings});
}

void DryGroup::do_reduce_scatter(Operand out, Operand in, ReduceOp, bool, Stream*) {
  if (hosts() == 1) return count(WireKind::ReduceScatter, {others(in), 0});
  const int64_t part = out.numel * size_of(in.dtype), givers = static_cast<int64_t>(layout_.givers(rank()).size());
  const int64_t greetings = static_cast<int64_t>(layout_.partners(rank()).size()) * kGreeting;
  count(WireKind::ReduceScatter, {neighbours() > 0 ? (size() - 1 - givers) * part : 0, givers * part + greetings});
}

void DryGroup::do_all_to_all(Operand, Operand in, Counts send_counts, Counts, Stream*) {
  const int64_t before = hosts() == 1 ? 0 : kGreeting + static_cast<int64_t>(sizeof(int64_t));
  count(WireKind::AllToAll, messages([&](int r) { return before + send_counts[static_cast<size_t>(r)] * size_of(in.dtype); }));
}

void DryGroup::do_send(Operand tensor, int to, Stream*) {
  const bool is_near = layout_.host_of(to) == layout_.host_of(rank());
  const int64_t bytes = bytes_of(tensor);
  count(WireKind::Send, is_near ? Sent{bytes, 0} : Sent{0, bytes + static_cast<int64_t>(sizeof(Notice))});
}

void DryGroup::do_barrier(Stream*) {
  count(WireKind::Barrier, {0, layout_.index_of(rank()) == 0 ? (hosts() - 1) * kGreeting : 0});
}

}  // namespace rz::comm
