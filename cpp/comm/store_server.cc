#include "comm/store_server.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <utility>

#include "comm/sha256.h"

namespace rz::comm {
namespace {

constexpr auto kAdmission = std::chrono::seconds(10);
constexpr size_t kMaxHello = 4096;

}  // namespace

StoreServer::StoreServer(int port, bool loopback, std::string secret, int rank, int size, std::string version, double silence)
    : secret_(std::move(secret)), version_(std::move(version)), rank_(rank), silence_(silence), listener_(listen_tcp(port, loopback, "rank " + std::to_string(rank))), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)), ranks_(static_cast<size_t>(size)), connected_(static_cast<size_t>(size), false) {
  thread_ = std::thread([this] { run(); });
  pthread_setname_np(thread_.native_handle(), "rz-store");
}

StoreServer::~StoreServer() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  uint64_t one = 1;
  [[maybe_unused]] ssize_t written = write(wake_.get(), &one, sizeof one);
  thread_.join();
}

void StoreServer::linger() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] {
    for (size_t r = 0; r < connected_.size(); ++r)
      if (connected_[r] && static_cast<int>(r) != rank_) return false;
    return true;
  });
}

bool StoreServer::is_used() {
  std::lock_guard lock(mutex_);
  return std::any_of(ranks_.begin(), ranks_.end(), [](const RankStatus& r) { return r.pid != 0; });
}

void StoreServer::run() {
  Clock::time_point stop_deadline{};
  while (true) {
    bool stop;
    {
      std::lock_guard lock(mutex_);
      stop = stop_;
    }
    std::vector<pollfd> polled{{wake_.get(), POLLIN, 0}, {listener_.get(), POLLIN, 0}};
    bool pending = false;
    for (auto& connection : connections_) {
      bool output = !connection->out.empty();
      pending |= output;
      polled.push_back({connection->fd.get(), static_cast<short>(POLLIN | (output ? POLLOUT : 0)), 0});
    }
    if (stop) {
      if (stop_deadline == Clock::time_point{}) stop_deadline = Clock::now() + std::chrono::seconds(1);
      if (!pending || Clock::now() > stop_deadline) return;
    }
    poll(polled.data(), polled.size(), stop ? 10 : 200);
    if (polled[0].revents) {
      uint64_t count;
      [[maybe_unused]] ssize_t got = ::read(wake_.get(), &count, sizeof count);
    }
    for (size_t i = 2; i < polled.size(); ++i) {
      Connection& connection = *connections_[i - 2];
      if (polled[i].revents & (POLLIN | POLLHUP | POLLERR)) read(connection);
      while (!connection.out.empty() && connection.fd) {
        ssize_t sent = ::send(connection.fd.get(), connection.out.data(), connection.out.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent > 0) {
          connection.out.erase(0, static_cast<size_t>(sent));
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
          break;
        } else if (errno != EINTR) {
          disconnect(connection);
        }
      }
      if (connection.closing && connection.out.empty() && connection.fd) disconnect(connection);
      if (connection.rank < 0 && connection.fd && Clock::now() > connection.deadline) disconnect(connection);
    }
    std::erase_if(connections_, [](auto& connection) { return !connection->fd; });
    if (polled[1].revents) accept_one();
    look_for_silence();
    std::erase_if(waiting_, [&](const Waiting& w) {
      if (Clock::now() < w.deadline) return false;
      reply(*w.connection, w.request, false, "");
      return true;
    });
  }
}

void StoreServer::accept_one() {
  Fd fd(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!fd) return;
  tune_tcp(fd.get());
  auto connection = std::make_unique<Connection>();
  connection->fd = std::move(fd);
  connection->nonce = random_bytes(32);
  connection->deadline = Clock::now() + kAdmission;
  send(*connection, Writer(Message::Challenge).text(kStoreMagic).text(connection->nonce));
  connections_.push_back(std::move(connection));
}

void StoreServer::read(Connection& connection) {
  char buffer[65536];
  while (connection.fd) {
    ssize_t got = recv(connection.fd.get(), buffer, sizeof buffer, MSG_DONTWAIT);
    if (got > 0) {
      connection.heard = Clock::now();
      connection.in.append(buffer, static_cast<size_t>(got));
      if (connection.rank < 0 && connection.in.size() > kMaxHello) return disconnect(connection);
      continue;
    }
    if (got < 0 && errno == EINTR) continue;
    bool end = got == 0 || (errno != EAGAIN && errno != EWOULDBLOCK);
    std::string body;
    try {
      while (connection.fd && !connection.closing && take_frame(connection.in, body)) handle(connection, Reader(body));
    } catch (const Error&) {
      end = true;  // not a client of this store
    }
    if (end) disconnect(connection);
    return;
  }
}

void StoreServer::refuse(Connection& connection, const std::string& code, const std::string& reason) {
  send(connection, Writer(Message::Refused).text(code).text(reason));
  connection.closing = true;
}

void StoreServer::admit(Connection& connection, Reader& message) {
  uint32_t rank = message.u32(), size = message.u32(), pid = message.u32();
  std::string nonce = message.text(), proof = message.text(), version = message.text(), host = message.text();
  if (!equal_in_constant_time(proof, hmac_sha256(secret_, proof_text("client", connection.nonce, nonce, rank, size)))) {
    if (!std::exchange(told_of_strangers_, true)) {
      std::fprintf(stderr, "rankzero: the rendezvous store refused a process that holds another secret; all ranks of a job need the same RANKZERO_SECRET\n");
    }
    return refuse(connection, "ERR_STORE_SECRET",
                  "the rendezvous store refused this rank: it holds another secret. All ranks of a job need the same RANKZERO_SECRET");
  }
  if (version != version_) {
    std::string text = "rank " + std::to_string(rank) + (host.empty() ? "" : " on " + host) + " runs rankzero " + version + " but rank " + std::to_string(rank_) + " runs " + version_ +
                       ": install one version on all hosts";
    refuse(connection, "ERR_STORE_VERSION", text);
    return abort(rank_, "ERR_STORE_VERSION", text);
  }
  if (size != ranks_.size() || rank >= size) {
    std::string text = "a process joined as rank " + std::to_string(rank) + " of " + std::to_string(size) + " but rank " + std::to_string(rank_) + " has a world of " + std::to_string(ranks_.size());
    refuse(connection, "ERR_STORE_WORLD", text);
    // It holds the secret: this job cannot become complete, so it ends now and not after the timeout.
    if (!std::all_of(connected_.begin(), connected_.end(), [](bool connected) { return connected; })) abort(rank_, "ERR_STORE_WORLD", text);
    return;
  }
  std::lock_guard lock(mutex_);
  RankStatus& status = ranks_[rank];
  if (status.pid != 0) {
    return refuse(connection, "ERR_STORE_WORLD", "rank " + std::to_string(rank) + " has joined already (pid " + std::to_string(status.pid) + "): two processes have the same RANK");
  }
  status.pid = pid;
  status.host = host;
  connected_[rank] = true;
  connection.rank = static_cast<int>(rank);
  send(connection, Writer(Message::Welcome).text(hmac_sha256(secret_, proof_text("server", connection.nonce, nonce, rank, size))).u32(static_cast<uint32_t>(rank_)).u32(static_cast<uint32_t>(getpid())));
  last_progress_ = Clock::now();
}

void StoreServer::handle(Connection& connection, Reader message) {
  Message type = message.type();
  if (connection.rank < 0) {
    if (type != Message::Hello) fail("ERR_STORE_PROTOCOL", "a client must introduce itself first");
    return admit(connection, message);
  }
  size_t rank = static_cast<size_t>(connection.rank);
  switch (type) {
    case Message::Set: {
      std::string key = message.text();
      return set(key, message.text());
    }
    case Message::Get: {
      uint32_t request = message.u32();
      std::string key = message.text();
      uint64_t timeout = message.u64();
      auto found = values_.find(key);
      if (found != values_.end()) return reply(connection, request, true, found->second);
      waiting_.push_back({&connection, request, key, Clock::now() + std::chrono::milliseconds(timeout)});
      return;
    }
    case Message::Heartbeat: {
      Writer status(Message::Status);
      {
        std::lock_guard lock(mutex_);
        RankStatus& own = ranks_[rank];
        own.phase = message.text();
        own.operation = message.text();
        own.sequence = message.u64();
        own.bytes = message.u64();
        uint64_t ticks = message.u64();
        if (ticks != own.ticks) last_progress_ = Clock::now();
        own.ticks = ticks;
        status.u64(static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - last_progress_).count()));
        for (const RankStatus& r : ranks_) {
          status.u32(r.pid).u8(r.departed).text(r.phase).text(r.operation).u64(r.sequence).u64(r.bytes).u64(r.ticks);
        }
      }
      return send(connection, std::move(status));
    }
    case Message::Goodbye: {
      {
        std::lock_guard lock(mutex_);
        ranks_[rank].departed = true;
      }
      return broadcast(Writer(Message::Departed).u32(static_cast<uint32_t>(rank)));
    }
    case Message::Raise: {
      std::string code = message.text();
      return abort(connection.rank, code, message.text());
    }
    default: fail("ERR_STORE_PROTOCOL", "message ", static_cast<int>(type), " does not come from a client");
  }
}

void StoreServer::set(const std::string& key, std::string value) {
  std::erase_if(waiting_, [&](const Waiting& w) {
    if (w.key != key) return false;
    reply(*w.connection, w.request, true, value);
    return true;
  });
  values_[key] = std::move(value);
}

void StoreServer::reply(Connection& connection, uint32_t request, bool found, const std::string& value) {
  send(connection, Writer(Message::Reply).u32(request).u8(found).text(value));
}

void StoreServer::send(Connection& connection, Writer message) { connection.out += message.frame(); }

void StoreServer::broadcast(Writer message) {
  for (auto& connection : connections_) {
    if (connection->rank >= 0 && connection->fd) connection->out += message.frame();
  }
}

void StoreServer::abort(int rank, const std::string& code, const std::string& text) {
  if (std::exchange(aborted_, true)) return;
  broadcast(Writer(Message::Abort).u32(static_cast<uint32_t>(rank)).text(code).text(text));
}

// A process that was stopped, and a host behind a broken link, keep their connections: they are known by their silence. What they
// are told waits for them, as long as this host's kernel holds it.
void StoreServer::look_for_silence() {
  for (auto& connection : connections_) {
    if (connection->closing || connection->rank < 0 || !connection->fd || std::chrono::duration<double>(Clock::now() - connection->heard).count() < silence_) continue;
    std::string text;
    {
      std::lock_guard lock(mutex_);
      const RankStatus& status = ranks_[static_cast<size_t>(connection->rank)];
      text = status.text(connection->rank) + " has been silent for " + seconds_text(silence_) + " (RANKZERO_HEARTBEAT_TIMEOUT): its process is stopped, or its host cannot be reached; it was last " +
             status.activity();
      connected_[static_cast<size_t>(connection->rank)] = false;
    }
    abort(connection->rank, "ERR_PEER", text);
    connection->closing = true;
    changed_.notify_all();
  }
}

void StoreServer::disconnect(Connection& connection) {
  if (!connection.fd) return;
  connection.fd.reset();
  connection.out.clear();
  std::erase_if(waiting_, [&](const Waiting& w) { return w.connection == &connection; });
  if (connection.rank < 0) return;
  std::string text;
  {
    std::lock_guard lock(mutex_);
    RankStatus& status = ranks_[static_cast<size_t>(connection.rank)];
    if (!status.departed) text = status.text(connection.rank) + " died " + status.activity();
    status.departed = true;
    connected_[static_cast<size_t>(connection.rank)] = false;
  }
  changed_.notify_all();
  if (!text.empty()) abort(connection.rank, "ERR_PEER", text);
}

}  // namespace rz::comm
