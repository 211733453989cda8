#include "comm/hosts/link.h"

#include <pthread.h>

#include <cstring>

#include "comm/sha256.h"
#include "core/progress.h"
#include "core/task_log.h"

namespace rz::comm {
namespace {

constexpr size_t kPiece = size_t{4} << 20;
constexpr auto kTick = std::chrono::milliseconds(100);
// A connection that breaks has a cause, which its owner tells the store: so long its news may take.
constexpr auto kNews = std::chrono::seconds(3);
constexpr double kChallenge = 20;  // seconds for the answer
constexpr uint64_t kChallengeSlot = 1;
constexpr size_t kNonce = 32;

std::string proof(const std::string& key, int from, int to, const std::string& theirs) {
  return hmac_sha256(key, "pair " + std::to_string(from) + " " + std::to_string(to) + " " + theirs);
}

std::string farewell_key(int from, int to) { return "left/" + std::to_string(from) + "/" + std::to_string(to); }

}  // namespace

Link::Link(std::unique_ptr<Engine> engine, std::string key, Store& store, std::shared_ptr<JobState> state)
    : engine_(std::move(engine)), key_(std::move(key)), store_(store), state_(std::move(state)) {
  ticker_ = std::thread([this] { tick(); });
  pthread_setname_np(ticker_.native_handle(), "rz-link");
}

Link::~Link() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  ticker_.join();
}

// Waits of the engine know nothing of the job: they are woken to look, and connections in the making are cut if it is over.
void Link::tick() {
  std::unique_lock lock(mutex_);
  while (!stop_) {
    if (waiting_.empty() && connecting_ == 0) {
      changed_.wait(lock);
      continue;
    }
    changed_.wait_for(lock, kTick, [&] { return stop_; });
    for (Transfer* transfer : waiting_) transfer->wake();
    if (connecting_ > 0 && state_->aborted() && !dropped_) {
      dropped_ = true;
      engine_->drop();
    }
  }
}

void Link::drop() {
  std::lock_guard lock(mutex_);
  if (!std::exchange(dropped_, true)) engine_->drop();
}

void Link::ensure(const Doing& doing, const std::vector<int>& peers) {
  std::vector<int> own, others;
  {
    std::lock_guard lock(mutex_);
    for (int peer : peers) {
      Pair& pair = pairs_[peer];
      if (pair == Pair::Ready) continue;
      (pair == Pair::None ? own : others).push_back(peer);
      pair = Pair::Connecting;
    }
  }
  // All addresses are told before any is waited for: so no circle of ranks waits for itself.
  for (int peer : own) {
    std::string address;
    try {
      address = engine_->prepare(peer);
    } catch (const Error& error) {
      lost(doing, peer, error.what());
    }
    store_.set("pair/" + std::to_string(state_->rank()) + "/" + std::to_string(peer), address);
  }
  for (int peer : own) {
    connect(doing, peer);
    challenge(doing, peer);
    std::lock_guard lock(mutex_);
    pairs_[peer] = Pair::Ready;
  }
  changed_.notify_all();
  for (int peer : others) {
    auto ready = [&] {
      std::lock_guard lock(mutex_);
      return pairs_[peer] == Pair::Ready;
    };
    wait_for(*state_, doing, peer, ready, [&] {
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, kTick);
    });
  }
}

void Link::connect(const Doing& doing, int peer) {
  std::string address = store_.get("pair/" + std::to_string(peer) + "/" + std::to_string(state_->rank()), doing, peer);
  {
    std::lock_guard lock(mutex_);
    ++connecting_;
  }
  changed_.notify_all();
  std::string problem;
  try {
    engine_->connect(peer, address);
  } catch (const Error& error) {
    problem = error.what();
  }
  {
    std::lock_guard lock(mutex_);
    --connecting_;
  }
  if (state_->aborted()) state_->throw_abort(doing);  // the connection may have been cut in the making
  if (!problem.empty()) lost(doing, peer, "no connection could be made: " + problem);
}

// Both prove that they hold the job's key, each over the other's nonce: nobody else can have been connected in between.
void Link::challenge(const Doing& doing, int peer) {
  std::string nonce = random_bytes(kNonce), theirs(kNonce, 0);
  auto exchange = [&](std::string& out, std::string& in) {
    LinkMessage arriving = receive(peer, kChallengeSlot, in.data(), in.size()), leaving = send(peer, kChallengeSlot, out.data(), out.size());
    if (!wait_at_most(doing, leaving, kChallenge) || !wait_at_most(doing, arriving, kChallenge))
      lost(doing, peer, "what answers there did not prove within " + seconds_text(kChallenge) + " that it is this rank");
  };
  exchange(nonce, theirs);
  std::string own = proof(key_, state_->rank(), peer, theirs), answer(own.size(), 0);
  exchange(own, answer);
  if (!equal_in_constant_time(answer, proof(key_, peer, state_->rank(), nonce)))
    cut(doing, peer, "what answers there does not hold this job's secret");
}

LinkMessage Link::post(int peer, uint64_t slot, void* data, size_t bytes, bool sends) {
  LinkMessage message{peer, sends, slot, 0, bytes, {}};
  {
    std::lock_guard lock(mutex_);
    Posted& posted = posted_[peer][slot];
    message.number = sends ? ++posted.sent : ++posted.received;
  }
  auto* at = static_cast<std::byte*>(data);
  try {
    for (size_t done = 0; done < bytes; done += kPiece) {
      const size_t piece = std::min(kPiece, bytes - done);
      message.pieces.push_back(sends ? engine_->send(peer, slot, at + done, piece) : engine_->receive(peer, slot, at + done, piece));
    }
  } catch (const Error& error) {
    lost({sends ? "send" : "receive"}, peer, error.what());
  }
  return message;
}

LinkMessage Link::send(int peer, uint64_t slot, const void* data, size_t bytes) {
  LinkMessage message = post(peer, slot, const_cast<void*>(data), bytes, true);
  sent_.fetch_add(bytes, std::memory_order_relaxed);
  return message;
}

LinkMessage Link::receive(int peer, uint64_t slot, void* data, size_t bytes) { return post(peer, slot, data, bytes, false); }

void Link::farewell() {
  std::lock_guard lock(mutex_);
  for (const auto& [peer, pair] : pairs_) {
    std::string text;
    for (const auto& [slot, posted] : posted_[peer])
      for (uint64_t value : {slot, posted.sent, posted.received}) text.append(reinterpret_cast<const char*>(&value), sizeof value);
    store_.set(farewell_key(state_->rank(), peer), text);
  }
}

bool Link::is_owed(const Doing& doing, const LinkMessage& message) {
  auto known = [&] {
    std::lock_guard lock(mutex_);
    return farewells_.contains(message.peer);
  };
  if (!known()) {
    const std::string text = store_.get(farewell_key(message.peer, state_->rank()), doing, -1);
    std::map<uint64_t, Posted> posted;
    for (size_t at = 0; at < text.size(); at += 3 * sizeof(uint64_t)) {
      uint64_t values[3];
      std::memcpy(values, text.data() + at, sizeof values);
      posted[values[0]] = {values[1], values[2]};
    }
    std::lock_guard lock(mutex_);
    farewells_[message.peer] = std::move(posted);
  }
  std::lock_guard lock(mutex_);
  const Posted& posted = farewells_[message.peer][message.slot];
  return message.number <= (message.sends ? posted.received : posted.sent);
}

bool Link::wait_piece(const Doing& doing, const LinkMessage& message, Transfer& transfer, Clock::time_point limit) {
  struct Registered {
    Link* link;
    Transfer* transfer;
    Registered(Link* link, Transfer* transfer) : link(link), transfer(transfer) {
      std::lock_guard lock(link->mutex_);
      link->waiting_.insert(transfer);
      if (link->waiting_.size() == 1) link->changed_.notify_all();
    }
    ~Registered() {
      std::lock_guard lock(link->mutex_);
      link->waiting_.erase(transfer);
    }
  } registered{this, &transfer};
  const int peer = message.peer;
  bool done = false;
  std::string broken;
  auto over = [&] { return done || !broken.empty() || Clock::now() > limit; };
  auto pause = [&] {
    try {
      done = transfer.wait();
    } catch (const Error& error) {
      broken = error.what();
    }
  };
  wait_for(*state_, doing, peer, [&] { return over() || state_->departed(peer); }, pause);
  if (!over()) {
    if (!is_owed(doing, message)) state_->peer_left(doing, peer);
    wait_for(*state_, doing, -1, over, pause);
  }
  if (!broken.empty()) lost(doing, peer, broken);
  return done;
}

void Link::wait(const Doing& doing, LinkMessage& message) { wait_at_most(doing, message, 1e9); }

bool Link::wait_at_most(const Doing& doing, LinkMessage& message, double seconds) {
  PeerWait waiting;
  const auto limit = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  const size_t last = message.pieces.empty() ? 0 : message.bytes - (message.pieces.size() - 1) * kPiece;
  for (auto& piece : message.pieces) {
    if (!wait_piece(doing, message, *piece, limit)) return false;
    progress::add_bytes(&piece == &message.pieces.back() ? last : kPiece);
  }
  message.pieces.clear();
  return true;
}

void Link::lost(const Doing& doing, int peer, const std::string& why) {
  for (auto until = Clock::now() + kNews; Clock::now() < until && !state_->aborted() && !state_->departed(peer);) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  if (state_->aborted()) state_->throw_abort(doing);
  if (state_->departed(peer)) state_->peer_left(doing, peer);
  cut(doing, peer, why);
}

void Link::cut(const Doing& doing, int peer, const std::string& why) {
  state_->raise("ERR_PEER", state_->status(state_->rank()).text(state_->rank()) + " lost its connection to " + state_->status(peer).text(peer) + " in " + doing.text() + ": " + why);
}

}  // namespace rz::comm
