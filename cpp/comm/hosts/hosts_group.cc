// Group life: who is where, connections, turns, greetings. The collectives are in hosts_collectives.cc and hosts_p2p.cc.
#include "comm/hosts/hosts_group.h"

#include <algorithm>
#include <cstring>

#include "comm/sha256.h"
#include "comm/shm_limits.h"
#include "comm/turn.h"
#include "core/cpu_stream.h"

namespace rz::comm {
namespace {

// The same on all ranks of the group, another for every other group; the last byte is the channel.
uint64_t slot_of(const std::string& key) {
  uint64_t slot;
  std::memcpy(&slot, hmac_sha256("slot", key).data(), sizeof slot);
  return slot & ~uint64_t{0xff};
}

}  // namespace

HostsGroup::HostsGroup(std::shared_ptr<Job> job, const std::string& key, std::string title, std::vector<int> ranks, int rank, HostLayout layout,
                       std::shared_ptr<SharedPool> pool)
    : ProcessGroup(std::move(title), std::move(ranks), rank), job_(std::move(job)), pool_(std::move(pool)), layout_(std::move(layout)), slot_(slot_of(key)) {
  for (int r = 0; r < size(); ++r) {
    sends_.push_back(std::make_unique<Sequencer>());
    receives_.push_back(std::make_unique<Sequencer>());
  }
  buffered_.resize(static_cast<size_t>(size()));
}

std::shared_ptr<HostsGroup> HostsGroup::create(std::shared_ptr<Job> job, const std::string& key, const std::string& title, std::vector<int> ranks,
                                               HostLayout layout, std::shared_ptr<SharedPool> pool) {
  const int rank = static_cast<int>(std::find(ranks.begin(), ranks.end(), job->state().rank()) - ranks.begin());
  std::shared_ptr<HostsGroup> group(new HostsGroup(std::move(job), key, title, std::move(ranks), rank, std::move(layout), std::move(pool)));
  group->attach(key);
  return group;
}

void HostsGroup::attach(const std::string& key) {
  const auto& neighbours = layout_.ranks_on(own_host());
  if (neighbours.size() > 1) {
    std::vector<int> world;
    for (int r : neighbours) world.push_back(world_rank(r));
    const std::string title = name() + " on " + state().status(state().rank()).host;
    local_ = ShmGroup::create(job_, key + " on host " + std::to_string(own_host()), title, std::move(world), pool_);
  }
  std::vector<int> peers;
  for (int r : partners()) peers.push_back(world_rank(r));
  link().ensure({"newGroup", 0, name().c_str()}, peers);
}

void HostsGroup::quiesce() noexcept {
  try {
    for (int peer = 0; peer < size(); ++peer) {
      Doing doing{"close", 0, name().c_str()};
      for (Buffered& each : buffered_[static_cast<size_t>(peer)]) {
        if (state().aborted() || state().departed(world_rank(peer))) break;
        link().wait(doing, each.message);
      }
    }
  } catch (const std::exception&) {
    // The job is over; nobody receives any more.
  }
  if (local_) local_->quiesce();
}

void HostsGroup::wait(const Doing& doing, std::vector<LinkMessage>& messages) {
  for (LinkMessage& message : messages) link().wait(doing, message);
  messages.clear();
}

std::shared_ptr<Storage> HostsGroup::allocate_shared(size_t bytes, Stream* home, MemoryKind kind, bool populate) {
  return pool_->allocate(bytes, home, kind, populate);
}

std::shared_ptr<Storage> HostsGroup::allocate_whole(size_t, Stream*, MemoryKind) {
  fail("ERR_GROUP", "the ranks of group ", name(), " are on ", hosts(), " hosts and cannot map one memory");
}

std::shared_ptr<ProcessGroup> HostsGroup::split(const std::vector<int>& members) {
  check_members(members);
  return job_->split(*this, members, pool_->runtime());
}

void HostsGroup::submit(Sequencer& sequencer, const char* operation, Stream* stream, Work work, std::function<void(const Doing&)> body) {
  auto turn = std::make_shared<Turn>(shared_from_this(), state(), sequencer, operation);
  static_cast<CpuStream*>(stream)->enqueue(operation, [this, turn, work, body = std::move(body)] {
    describe(work);
    turn->run([&](const Doing& doing) {
      try {
        body(doing);
      } catch (...) {
        link().drop();  // messages that are on their way write no memory that others take now
        throw;
      }
    });
  });
}

std::vector<Header> HostsGroup::greet(const Doing& doing, const Header& own, const std::vector<int>& peers) {
  std::vector<Header> theirs(peers.size());
  std::vector<int> world;
  for (int peer : peers) world.push_back(world_rank(peer));
  link().ensure(doing, world);
  std::vector<LinkMessage> messages;
  for (size_t i = 0; i < peers.size(); ++i) messages.push_back(link().receive(world[i], slot_ + kGreeting, &theirs[i], sizeof(Header)));
  for (int peer : world) messages.push_back(link().send(peer, slot_ + kGreeting, &own, sizeof(Header)));
  for (auto& message : messages) link().wait(doing, message);
  for (size_t i = 0; i < peers.size(); ++i) {
    if (same_call(own, theirs[i])) continue;
    state().raise("ERR_COLLECTIVE_MISMATCH", "the ranks of group " + name() + " made different calls: collective #" + std::to_string(doing.sequence) + " " +
                                                 difference(own, world_rank(rank()), theirs[i], world[i]));
  }
  return theirs;
}

std::byte* HostsGroup::scratch(std::vector<std::byte>& memory, size_t bytes) {
  if (memory.size() < bytes) memory.resize(bytes);
  return memory.data();
}

}  // namespace rz::comm
