#include "comm/dry_group.h"

#include <algorithm>

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

}  // namespace

std::shared_ptr<Storage> DryGroup::allocate_shared(size_t bytes, Stream* home, MemoryKind kind, bool) {
  return std::make_shared<DryStorage>(runtime_->allocator(), bytes, SharedPool::rounded(bytes), home, kind);
}

std::shared_ptr<Storage> DryGroup::allocate_whole(size_t bytes, Stream* home, MemoryKind kind) {
  return std::make_shared<DryStorage>(runtime_->allocator(), bytes, bytes / static_cast<size_t>(size()), home, kind, true);
}

std::shared_ptr<ProcessGroup> DryGroup::split(const std::vector<int>& members) {
  check_members(members);
  auto own = std::find(members.begin(), members.end(), rank());
  if (own == members.end()) return nullptr;
  std::vector<int> world;
  for (int member : members) world.push_back(ranks()[static_cast<size_t>(member)]);
  return std::make_shared<DryGroup>(name() + " part", std::move(world), static_cast<int>(own - members.begin()), runtime_, wire_);
}

void DryGroup::count(WireKind kind, int64_t bytes) {
  if (size() == 1) return;
  wire_->calls[static_cast<size_t>(kind)] += 1;
  wire_->bytes[static_cast<size_t>(kind)] += bytes;
}

void DryGroup::do_broadcast(Operand tensor, int root, Stream*) {
  count(WireKind::Broadcast, rank() == root ? static_cast<int64_t>(tensor.bytes()) : 0);
}

void DryGroup::do_scatter(Operand out, Operand, int root, Stream*) {
  count(WireKind::Scatter, rank() == root ? static_cast<int64_t>(out.bytes()) * (size() - 1) : 0);
}

void DryGroup::do_all_reduce(Operand tensor, ReduceOp, Stream*) {
  count(WireKind::AllReduce, 2 * static_cast<int64_t>(tensor.bytes()) * (size() - 1) / size());
}

void DryGroup::do_all_gather(Operand out, Operand, Stream*) { count(WireKind::AllGather, others(out)); }

void DryGroup::do_reduce_scatter(Operand, Operand in, ReduceOp, bool, Stream*) { count(WireKind::ReduceScatter, others(in)); }

void DryGroup::do_all_to_all(Operand, Operand in, Counts send_counts, Counts, Stream*) {
  count(WireKind::AllToAll, (in.numel - send_counts[static_cast<size_t>(rank())]) * size_of(in.dtype));
}

void DryGroup::do_send(Operand tensor, int, Stream*) { count(WireKind::Send, static_cast<int64_t>(tensor.bytes())); }

}  // namespace rz::comm
