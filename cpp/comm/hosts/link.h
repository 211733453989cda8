// A rank's connections to ranks of other hosts: made when a group needs them, challenged before their first use, and waited on
// with an eye to the job. Any thread.
#pragma once
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "comm/hosts/engine.h"
#include "comm/store.h"

namespace rz::comm {

// A message on its way, in pieces, so that a long one is seen to move.
struct LinkMessage {
  int peer = -1;
  bool sends = false;
  uint64_t slot = 0, number = 0;  // counted from 1 by slot, peer and direction
  size_t bytes = 0;
  std::vector<std::unique_ptr<Transfer>> pieces;
};

class Link {
 public:
  // `key`: 32 bytes that only ranks of the job can know.
  Link(std::unique_ptr<Engine> engine, std::string key, Store& store, std::shared_ptr<JobState> state);
  ~Link();

  std::string title() const { return engine_->title(); }
  // Connects to those of `peers`, ranks of the world, that are not connected yet; all of them must do the same.
  // Errors: ERR_CONNECTION, ERR_PEER, those of the job.
  void ensure(const Doing& doing, const std::vector<int>& peers);

  // The peer is connected. `data` must stay until wait() has returned.
  LinkMessage send(int peer, uint64_t slot, const void* data, size_t bytes);
  LinkMessage receive(int peer, uint64_t slot, void* data, size_t bytes);
  // Errors: ERR_PEER where the connection broke, those of the job.
  void wait(const Doing& doing, LinkMessage& message);
  // Whether a wait would not block is unknown; this waits at most so long and says whether it is done.
  bool wait_at_most(const Doing& doing, LinkMessage& message, double seconds);

  // Tells the peers which messages this rank has posted: what it leaves behind arrives after the news that it left. Before
  // Store::leave; nothing is posted afterwards.
  void farewell();

  // Cuts all connections, after which no memory is touched any more. The job is over.
  void drop();
  // Bytes sent so far.
  uint64_t sent() const { return sent_.load(std::memory_order_relaxed); }

 private:
  enum class Pair : uint8_t { None, Connecting, Ready };
  void connect(const Doing& doing, int peer);
  void challenge(const Doing& doing, int peer);
  // The connection broke: if the job knows why, that is the error.
  [[noreturn]] void lost(const Doing& doing, int peer, const std::string& why);
  [[noreturn]] void cut(const Doing& doing, int peer, const std::string& why);
  LinkMessage post(int peer, uint64_t slot, void* data, size_t bytes, bool sends);
  bool wait_piece(const Doing& doing, const LinkMessage& message, Transfer& transfer, Clock::time_point limit);
  // Whether a peer that has left had posted its side of the message.
  bool is_owed(const Doing& doing, const LinkMessage& message);
  void tick();

  std::unique_ptr<Engine> engine_;
  std::string key_;
  Store& store_;
  std::shared_ptr<JobState> state_;
  std::atomic<uint64_t> sent_{0};

  std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  std::map<int, Pair> pairs_;
  struct Posted {
    uint64_t sent = 0, received = 0;
  };
  std::map<int, std::map<uint64_t, Posted>> posted_;     // by peer and slot
  std::map<int, std::map<uint64_t, Posted>> farewells_;  // what peers that left had posted for this rank
  std::set<Transfer*> waiting_;  // woken now and then, to look around
  int connecting_ = 0;
  bool dropped_ = false, stop_ = false;
  std::thread ticker_;
};

}  // namespace rz::comm
