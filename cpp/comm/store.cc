#include "comm/store.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "comm/sha256.h"
#include "core/progress.h"

namespace rz::comm {
namespace {

constexpr auto kHeartbeat = std::chrono::milliseconds(1000);  // when nothing changes; else ten times a second
constexpr auto kPatience = std::chrono::seconds(10);  // before a wait for another rank is mentioned
constexpr auto kSendLimit = std::chrono::seconds(30);

// Reads one frame before the connection's thread exists.
bool receive_frame(int fd, std::string& body, Clock::time_point deadline) {
  uint32_t length = 0;
  if (!receive_all(fd, &length, 4, deadline)) return false;
  if (length == 0 || length > 4096) fail("ERR_STORE_PROTOCOL", "what listens there is not a rendezvous store");
  body.resize(length);
  return receive_all(fd, body.data(), length, deadline);
}

}  // namespace

Store::Store(const StoreAddress& address, std::shared_ptr<JobState> state)
    : state_(std::move(state)), version_(address.version), host_name_(address.host_name), silence_(address.silence), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  handshake(address);
  thread_ = std::thread([this] { run(); });
  pthread_setname_np(thread_.native_handle(), "rz-store-client");
  state_->set_announcer([this](const std::string& code, const std::string& text) { send(Writer(Message::Raise).text(code).text(text)); });
}

Store::~Store() {
  state_->set_announcer(nullptr);
  {
    std::lock_guard lock(state_->mutex());
    stop_ = true;
  }
  uint64_t one = 1;
  [[maybe_unused]] ssize_t written = write(wake_.get(), &one, sizeof one);
  thread_.join();
  if (!goodbye_) return;
  // Closing with unread data would reset the connection and could lose the goodbye.
  shutdown(fd_.get(), SHUT_WR);
  char rest[4096];
  while (wait_readable(fd_.get(), 1000) && recv(fd_.get(), rest, sizeof rest, 0) > 0) {
  }
}

void Store::handshake(const StoreAddress& address) {
  auto start = Clock::now(), deadline = start + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(state_->timeout()));
  std::string where = address.host + ":" + std::to_string(address.port);
  bool told = false;
  std::optional<Error> refused;
  int refusals = 0;
  for (int delay = 5;; delay = std::min(delay * 2, 200)) {
    try {
      std::string secret = address.secret();
      Fd fd = secret.empty() ? Fd() : connect_tcp(address.host, address.port, deadline);
      if (fd && try_handshake(fd, secret)) {
        fd_ = std::move(fd);
        return;
      }
    } catch (const Error& error) {
      if (error.code() == "ERR_STORE_PROTOCOL") fail("ERR_STORE_PROTOCOL", "what listens at ", where, " is not a rendezvous store");
      // A stale file of an earlier job may hold another secret for a moment.
      if (error.code() != "ERR_STORE_SECRET" || ++refusals > 10) throw;
      delay = 200;
    }
    if (Clock::now() > deadline) {
      fail("ERR_TIMEOUT", "rank ", state_->rank(), " of ", state_->size(), " found no rendezvous store at ", where, " within ", state_->timeout(),
           " s (RANKZERO_TIMEOUT); rank 0 should listen there. Is it running, and does no firewall block that port?");
    }
    if (!told && Clock::now() - start > kPatience) {
      told = true;
      std::fprintf(stderr, "rankzero: rank %d waits for rank 0 at %s\n", state_->rank(), where.c_str());
    }
    usleep(static_cast<useconds_t>(delay) * 1000);
  }
}

bool Store::try_handshake(Fd& fd, const std::string& secret) {
  auto deadline = Clock::now() + std::chrono::seconds(10);
  std::string body;
  if (!receive_frame(fd.get(), body, deadline)) return false;
  Reader challenge(body);
  if (challenge.type() != Message::Challenge || challenge.text() != kStoreMagic) {
    fail("ERR_STORE_PROTOCOL", "what listens there is not a rendezvous store");
  }
  std::string server_nonce = challenge.text(), nonce = random_bytes(32);
  uint32_t rank = static_cast<uint32_t>(state_->rank()), size = static_cast<uint32_t>(state_->size());
  Writer hello(Message::Hello);
  hello.u32(rank).u32(size).u32(static_cast<uint32_t>(getpid())).text(nonce);
  hello.text(hmac_sha256(secret, proof_text("client", server_nonce, nonce, rank, size))).text(version_).text(host_name_);
  const std::string& frame = hello.frame();
  if (!send_all(fd.get(), frame.data(), frame.size(), deadline) || !receive_frame(fd.get(), body, deadline)) return false;
  Reader answer(body);
  Message type = answer.type();
  if (type == Message::Refused) {
    std::string code = answer.text();
    throw Error(code, answer.text());
  }
  if (type != Message::Welcome || !equal_in_constant_time(answer.text(), hmac_sha256(secret, proof_text("server", server_nonce, nonce, rank, size)))) {
    fail("ERR_STORE_SECRET", "the rendezvous store could not prove that it holds this job's secret");
  }
  server_ = static_cast<int>(answer.u32());
  server_pid_ = answer.u32();
  return true;
}

void Store::send(Writer message) {
  const std::string& frame = message.frame();
  std::lock_guard lock(send_mutex_);
  // A failure shows as the end of the connection, which the reading thread reports.
  send_all(fd_.get(), frame.data(), frame.size(), Clock::now() + kSendLimit);
}

void Store::heartbeat() {
  progress::Snapshot now = progress::snapshot();
  send(Writer(Message::Heartbeat).text(now.phase).text(now.operation).u64(now.sequence).u64(now.bytes).u64(now.ticks));
}

void Store::run() {
  auto next_heartbeat = Clock::now(), heard = Clock::now();
  uint64_t told = 0;
  char chunk[65536];
  while (true) {
    {
      std::lock_guard lock(state_->mutex());
      if (stop_) return;
    }
    if (Clock::now() >= next_heartbeat || progress::ticks() != told) {
      told = progress::ticks();
      heartbeat();
      next_heartbeat = Clock::now() + kHeartbeat;
    }
    pollfd polled[2] = {{fd_.get(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
    poll(polled, 2, 100);
    ssize_t got = recv(fd_.get(), chunk, sizeof chunk, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
      // Every heartbeat is answered.
      if (std::chrono::duration<double>(Clock::now() - heard).count() < silence_) continue;
      state_->abort("ERR_PEER", server_text() + ", which holds the store, has been silent for " + seconds_text(silence_) +
                                    " (RANKZERO_HEARTBEAT_TIMEOUT): its process is stopped, or its host cannot be reached");
      heard = Clock::now();
      continue;
    }
    std::string why;
    if (got > 0) {
      heard = Clock::now();
      buffer_.append(chunk, static_cast<size_t>(got));
      try {
        std::string body;
        while (take_frame(buffer_, body)) handle(Reader(body));
        continue;
      } catch (const Error& error) {
        why = error.what();
      }
    }
    {
      std::lock_guard lock(state_->mutex());
      closed_ = true;
    }
    state_->notify();
    state_->abort("ERR_PEER", server_text() + ", which holds the store, died " + state_->status(server_).activity() + (why.empty() ? "" : ": " + why));
    return;
  }
}

std::string Store::server_text() const {
  RankStatus server = state_->status(server_);
  server.pid = server_pid_;
  return server.text(server_);
}

void Store::handle(Reader message) {
  switch (message.type()) {
    case Message::Reply: {
      uint32_t request = message.u32();
      bool found = message.u8() != 0;
      std::string value = message.text();
      {
        std::lock_guard lock(state_->mutex());
        auto pending = pending_.find(request);
        if (pending == pending_.end()) return;
        pending->second = {true, found, std::move(value)};
      }
      return state_->notify();
    }
    case Message::Status: {
      int64_t idle = static_cast<int64_t>(message.u64());
      std::vector<RankStatus> ranks(static_cast<size_t>(state_->size()));
      for (RankStatus& r : ranks) {
        r.pid = message.u32();
        r.departed = message.u8() != 0;
        r.phase = message.text();
        r.operation = message.text();
        r.sequence = message.u64();
        r.bytes = message.u64();
        r.ticks = message.u64();
      }
      return state_->update(std::move(ranks), idle);
    }
    case Message::Abort: {
      message.u32();
      std::string code = message.text();
      return state_->abort(code, message.text());
    }
    case Message::Departed: return state_->depart(static_cast<int>(message.u32()));
    default: fail("ERR_STORE_PROTOCOL", "an unknown message came from the store");
  }
}

Store::Pending Store::request(Message type, const std::string& key, uint64_t argument, const Doing& doing, int owner, const std::string& notice) {
  auto start = Clock::now();
  bool told = notice.empty();
  uint32_t id;
  {
    std::lock_guard lock(state_->mutex());
    id = next_request_++;
    pending_[id];
  }
  struct Forget {
    Store* store;
    uint32_t id;
    ~Forget() {
      std::lock_guard lock(store->state_->mutex());
      store->pending_.erase(id);
    }
  } forget{this, id};
  send(Writer(type).u32(id).text(key).u64(argument));
  auto ready = [&] {
    std::lock_guard lock(state_->mutex());
    if (!pending_[id].done && closed_ && !state_->aborted()) fail("ERR_PEER", "rank ", server_, ", which holds the store, has left; this rank was in ", doing.text());
    return pending_[id].done;
  };
  wait_for(*state_, doing, owner, ready, [&] {
    std::unique_lock lock(state_->mutex());
    if (!pending_[id].done && !state_->aborted() && !closed_) state_->sleep(lock, 100);
    if (!told && Clock::now() - start > kPatience) {
      told = true;
      std::fputs(notice.c_str(), stderr);
    }
  });
  std::lock_guard lock(state_->mutex());
  return pending_[id];
}

void Store::set(const std::string& key, const std::string& value) { send(Writer(Message::Set).text(key).text(value)); }

std::string Store::get(const std::string& key, const Doing& doing, int owner, const std::string& notice) {
  constexpr uint64_t kWeek = 7ull * 24 * 3600 * 1000;  // whether to give up is decided by progress alone
  Pending reply = request(Message::Get, key, kWeek, doing, owner, notice);
  if (!reply.found) fail("ERR_TIMEOUT", "key ", key, " did not appear in the rendezvous store");
  return reply.value;
}

void Store::leave() {
  if (goodbye_.exchange(true)) return;
  send(Writer(Message::Goodbye));
}

}  // namespace rz::comm
