// Group life: attaching, turns, rounds, mailboxes. The collectives are in shm_collectives.cc and shm_p2p.cc.
#include "comm/shm_group.h"

#include <algorithm>
#include <sstream>
#include <thread>

#include "comm/futex.h"
#include "comm/shm_limits.h"
#include "comm/turn.h"
#include "core/progress.h"
#include "core/task_log.h"

namespace rz::comm {

ShmGroup::ShmGroup(std::shared_ptr<Job> job, std::string title, std::vector<int> ranks, int rank, std::shared_ptr<SharedPool> pool)
    : ProcessGroup(std::move(title), std::move(ranks), rank), job_(std::move(job)), pool_(std::move(pool)), parcels_(static_cast<size_t>(size()), {0, nullptr, 0}) {
  // A rank has a compute and a communication thread; where those outnumber the cores, spinning steals from the peer.
  bool roomy = std::thread::hardware_concurrency() >= 2 * static_cast<unsigned>(state().size());
  spin_ = roomy ? 2000 : 100;
  for (int r = 0; r < size(); ++r) {
    sends_.push_back(std::make_unique<Sequencer>());
    receives_.push_back(std::make_unique<Sequencer>());
  }
}

std::shared_ptr<ShmGroup> ShmGroup::create(std::shared_ptr<Job> job, const std::string& key, const std::string& title, std::vector<int> ranks,
                                           std::shared_ptr<SharedPool> pool) {
  auto found = std::find(ranks.begin(), ranks.end(), job->state().rank());
  int rank = static_cast<int>(found - ranks.begin());
  std::shared_ptr<ShmGroup> group(new ShmGroup(std::move(job), title, std::move(ranks), rank, std::move(pool)));
  group->attach(key);
  return group;
}

void ShmGroup::attach(const std::string& key) {
  Doing doing{"newGroup", 0, name().c_str()};
  if (rank() == 0) {
    auto owned = job_->exchange().own().create(Control::bytes(static_cast<size_t>(size())));
    control_segment_ = owned.id;
    control_ = Control(owned.data, size());
    job_->store().set(key, std::to_string(owned.id));
  } else {
    int segment = std::stoi(job_->store().get(key, doing, world_rank(0)));
    control_mapping_ = job_->exchange().map_writable(world_rank(0), segment, doing);
    control_ = Control(control_mapping_->data(), size());
  }
  // Nobody goes on before all are attached: the first collective can then rely on every slot.
  auto& joined = control_.preamble().joined;
  joined.fetch_add(1);
  // Which rank is missing is told by the store only if it died; -1 otherwise.
  wait_for(state(), doing, -1, [&] { return joined.load() >= static_cast<uint32_t>(size()); },
           [&] {
             for (int r : ranks()) {
               if (state().departed(r) && joined.load() < static_cast<uint32_t>(size())) state().peer_left(doing, r);
             }
             std::this_thread::sleep_for(std::chrono::microseconds(200));
           });
}

ShmGroup::~ShmGroup() {
  quiesce();
  for (auto& parcel : parcels_) {
    if (parcel.data) job_->exchange().destroy(parcel.id);
  }
  if (mailbox_.data) job_->exchange().destroy(mailbox_.id);
  if (control_segment_) job_->exchange().destroy(control_segment_);
}

void ShmGroup::quiesce() noexcept {
  Doing doing{"close", 0, name().c_str()};
  auto pause = [] { std::this_thread::sleep_for(std::chrono::microseconds(100)); };
  try {
    if (!control_.valid()) return;
    uint32_t finished = control_.slot(rank()).finished.load();
    for (int peer = 0; peer < size(); ++peer) {
      if (peer == rank() || state().aborted() || state().departed(world_rank(peer))) continue;
      wait_for(state(), doing, world_rank(peer), [&] { return reached(control_.slot(peer).finished.load(), finished); }, pause);
      Channel& channel = control_.channel(rank(), peer);
      wait_for(state(), doing, world_rank(peer), [&] { return channel.received.load() == channel.sent.load() || state().departed(world_rank(peer)); }, pause);
    }
  } catch (const std::exception&) {
    // The job is over; nobody reads any more.
  }
}

std::shared_ptr<Storage> ShmGroup::allocate_shared(size_t bytes, Stream* home, MemoryKind kind, bool populate) {
  return pool_->allocate(bytes, home, kind, populate);
}

std::shared_ptr<Storage> ShmGroup::allocate_whole(size_t bytes, Stream* home, MemoryKind kind) {
  WholeSegment segment;
  SegmentExchange& exchange = job_->exchange();
  bytes = std::max<size_t>(bytes, 1);
  if (rank() == 0) segment = exchange.make_whole(bytes);
  int id = std::stoi(broadcast_bytes(std::to_string(segment.own), 0, home));
  std::string problem;
  try {
    if (rank() != 0) segment = exchange.map_whole(world_rank(0), id, {"allocate", 0, name().c_str()});
  } catch (const std::exception& error) {
    problem = error.what();
  }
  // Everyone has it, or everyone fails.
  for (const std::string& theirs : all_gather_bytes(problem, home)) {
    if (!theirs.empty()) fail("ERR_SHARED_MEMORY", theirs);
  }
  size_t counted = bytes / static_cast<size_t>(size());
  return job_->whole_pool(pool_->runtime())->adopt(std::move(segment), bytes, counted, home, kind);
}

std::shared_ptr<ProcessGroup> ShmGroup::split(const std::vector<int>& members) {
  check_members(members);
  return job_->split(*this, members, pool_->runtime());
}

void ShmGroup::submit(Sequencer& sequencer, const char* operation, Stream* stream, std::function<void(const Doing&)> body) {
  auto turn = std::make_shared<Turn>(shared_from_this(), state(), sequencer, operation);
  static_cast<CpuStream*>(stream)->enqueue(operation, [turn, body = std::move(body)] { turn->run(body); });
}

void ShmGroup::expose(Header& header, const Operand& tensor) const {
  if (tensor.bytes() <= kSmall) return;
  header.segment = tensor.segment;
  header.offset = tensor.offset;
}

void ShmGroup::publish() {
  Slot& own = control_.slot(rank());
  publish_word(own.round, own.sleepers, ++round_);
}

template <class Ready>
void ShmGroup::spin_then_wait(const Doing& doing, int peer, std::atomic<uint32_t>& word, std::atomic<uint32_t>& sleepers, Ready ready) {
  PeerWait waiting;
  for (int i = 0; i < spin_; ++i) {
    if (ready()) return;
    spin_pause();
  }
  wait_for(state(), doing, world_rank(peer), ready, [&] {
    uint32_t seen = word.load(std::memory_order_acquire);
    if (!ready()) sleep_on_word(word, sleepers, seen);
  });
}

void ShmGroup::await(const Doing& doing, int peer) {
  Slot& slot = control_.slot(peer);
  spin_then_wait(doing, peer, slot.round, slot.sleepers, [&] { return reached(slot.round.load(std::memory_order_acquire), round_); });
}

void ShmGroup::sync(const Doing& doing) {
  publish();
  for (int peer = 0; peer < size(); ++peer) {
    if (peer != rank()) await(doing, peer);
  }
}

void ShmGroup::compare(const Doing& doing, const Header& own, int peer) {
  const Header& other = header_of(peer, doing);
  if (same_call(own, other)) {
    if (static_cast<Operation>(own.operation) == Operation::AllToAll) compare_counts(doing, rank(), peer);
    return;
  }
  raise_mismatch(doing, difference(own, world_rank(rank()), other, world_rank(peer)));
}

void ShmGroup::raise_mismatch(const Doing& doing, const std::string& text) {
  state().raise("ERR_COLLECTIVE_MISMATCH", "the ranks of group " + name() + " made different calls: collective #" + std::to_string(doing.sequence) + " " + text);
}

void ShmGroup::enter(const Doing& doing, const Header& own) {
  control_.slot(rank()).headers[doing.sequence & 1] = own;
  publish();
  // Whoever arrives is compared at once, also while another rank is still missing.
  std::vector<bool> compared(static_cast<size_t>(size()), false);
  compared[static_cast<size_t>(rank())] = true;
  auto compare_arrived = [&](int waiting_for) {
    for (int peer = 0; peer < size(); ++peer) {
      if (compared[static_cast<size_t>(peer)] || !reached(control_.slot(peer).round.load(std::memory_order_acquire), round_)) continue;
      compare(doing, own, peer);
      compared[static_cast<size_t>(peer)] = true;
    }
    return static_cast<bool>(compared[static_cast<size_t>(waiting_for)]);
  };
  for (int peer = 0; peer < size(); ++peer) {
    if (compared[static_cast<size_t>(peer)]) continue;
    Slot& slot = control_.slot(peer);
    spin_then_wait(doing, peer, slot.round, slot.sleepers, [&] { return compare_arrived(peer); });
  }
}

bool ShmGroup::any_private(const Doing& doing) const {
  for (int peer = 0; peer < size(); ++peer) {
    if (header_of(peer, doing).segment < 0) return true;
  }
  return false;
}

bool ShmGroup::any_direct(const Doing& doing) const {
  for (int peer = 0; peer < size(); ++peer) {
    if (header_of(peer, doing).segment >= 0) return true;
  }
  return false;
}

std::byte* ShmGroup::mailbox(size_t bytes) {
  if (!mailbox_.data) {
    mailbox_ = job_->exchange().own().create(2 * kHalf);
    control_.slot(rank()).mailbox.store(mailbox_.id, std::memory_order_release);
  }
  std::byte* half = mailbox_.data + (mail_ & 1) * kHalf;
  size_t& populated = mailbox_populated_[mail_ & 1];
  if (bytes > populated) {
    size_t end = std::min((bytes + 65535) & ~size_t{65535}, kHalf);
    populate(half + populated, end - populated);
    populated = end;
  }
  return half;
}

const std::byte* ShmGroup::mailbox_of(int peer, const Doing& doing) {
  if (peer == rank()) return mailbox_.data + (mail_ & 1) * kHalf;
  int segment = control_.slot(peer).mailbox.load(std::memory_order_acquire);
  return job_->exchange().map(world_rank(peer), segment, doing) + (mail_ & 1) * kHalf;
}

const std::byte* ShmGroup::read(int peer, const Doing& doing, int64_t direct_at, int64_t mailbox_at) {
  const Header& h = header_of(peer, doing);
  if (h.segment < 0) return mailbox_of(peer, doing) + mailbox_at;
  return job_->exchange().map(world_rank(peer), h.segment, doing) + h.offset + direct_at;
}

}  // namespace rz::comm
