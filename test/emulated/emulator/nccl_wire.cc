#include "nccl_wire.h"

#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <random>
#include <stdexcept>
#include <system_error>
#include <thread>

namespace rz::emulator {
namespace {

struct Address {
  union {
    sockaddr any;
    sockaddr_in v4;
    sockaddr_in6 v6;
  };
  socklen_t length = 0;
};

struct Id {
  uint64_t cookie;
  Address root;
};
static_assert(sizeof(Id) <= 128);

// The first that a rank says, to the root and to its peers.
struct Hello {
  uint64_t cookie;
  int rank, size;
  Address listens;
};

[[noreturn]] void fail(const char* what) { throw std::system_error(errno, std::generic_category(), std::string("emulated NCCL: ") + what); }

// As NCCL_SOCKET_IFNAME: prefixes, `=` before exact names, `^` before those that are not wanted.
bool is_wanted(const std::string& name) {
  const char* text = std::getenv("NCCL_SOCKET_IFNAME");
  if (!text || !*text) return name != "lo";
  const bool unwanted = *text == '^', exact = *text == '=';
  std::string list = text + (unwanted || exact ? 1 : 0);
  for (size_t from = 0, to; from <= list.size(); from = to + 1) {
    to = std::min(list.find(',', from), list.size());
    const std::string one = list.substr(from, to - from);
    if (exact ? name == one : name.rfind(one, 0) == 0) return !unwanted;
  }
  return unwanted;
}

// The address of the interface that is wanted, IPv4 first; of loopback where there is none.
Address own_address() {
  Address found;
  found.v4 = {AF_INET, 0, {htonl(INADDR_LOOPBACK)}, {}};
  found.length = sizeof(sockaddr_in);
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) fail("no interfaces");
  for (int family : {AF_INET6, AF_INET}) {  // the latter overwrites
    for (ifaddrs* one = all; one; one = one->ifa_next) {
      if (!one->ifa_addr || one->ifa_addr->sa_family != family || !(one->ifa_flags & IFF_UP) || !is_wanted(one->ifa_name)) continue;
      if (family == AF_INET6 && IN6_IS_ADDR_LINKLOCAL(&reinterpret_cast<sockaddr_in6*>(one->ifa_addr)->sin6_addr)) continue;
      found.length = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
      std::memcpy(&found.any, one->ifa_addr, found.length);
      break;
    }
  }
  freeifaddrs(all);
  return found;
}

int listen_on(Address& address) {
  int socket = ::socket(address.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (socket < 0 || bind(socket, &address.any, address.length) != 0 || listen(socket, 64) != 0) fail("cannot listen");
  getsockname(socket, &address.any, &address.length);
  return socket;
}

int connect_to(const Address& address) {
  int socket = ::socket(address.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (socket < 0 || ::connect(socket, &address.any, address.length) != 0) fail("cannot connect");
  return socket;
}

void write_all(int socket, const void* data, size_t bytes) {
  for (auto* at = static_cast<const char*>(data); bytes > 0;) {
    ssize_t n = ::send(socket, at, bytes, MSG_NOSIGNAL);
    if (n <= 0) fail("cannot write");
    at += n, bytes -= static_cast<size_t>(n);
  }
}

bool read_all(int socket, void* data, size_t bytes) {
  return recv(socket, data, bytes, MSG_WAITALL) == static_cast<ssize_t>(bytes);
}

// The next caller who knows the cookie; a stranger is hung up on, soon.
int accept_hello(int listener, uint64_t cookie, Hello& hello) {
  for (;;) {
    int socket = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (socket < 0) fail("cannot accept");
    timeval patience{2, 0}, none{0, 0};
    setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (read_all(socket, &hello, sizeof hello) && hello.cookie == cookie) {
      setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &none, sizeof none);
      return socket;
    }
    ::close(socket);
  }
}

// Tells everybody where the others listen, when all have come.
void serve_root(int listener, uint64_t cookie) {
  try {
    std::vector<int> sockets;
    std::vector<Address> table;
    for (size_t joined = 0; joined == 0 || joined < sockets.size(); ++joined) {
      Hello hello;
      int socket = accept_hello(listener, cookie, hello);
      sockets.resize(static_cast<size_t>(hello.size), -1);
      table.resize(sockets.size());
      sockets.at(static_cast<size_t>(hello.rank)) = socket;
      table.at(static_cast<size_t>(hello.rank)) = hello.listens;
    }
    ::close(listener);
    for (int socket : sockets) write_all(socket, table.data(), table.size() * sizeof(Address));
    for (int socket : sockets) ::close(socket);
  } catch (const std::exception&) {
    // Ranks that still wait for the table wait on, as those of the real library.
  }
}

}  // namespace

void Wire::make_id(char* id) {
  std::random_device random;
  Id content{uint64_t{random()} << 32 | random(), own_address()};
  int listener = listen_on(content.root);
  std::thread(serve_root, listener, content.cookie).detach();
  std::memcpy(id, &content, sizeof content);
}

std::shared_ptr<Wire> Wire::connect(const char* text, int rank, int size) {
  Id id;
  std::memcpy(&id, text, sizeof id);
  Hello hello{id.cookie, rank, size, own_address()};
  int listener = listen_on(hello.listens);
  int root = connect_to(id.root);
  write_all(root, &hello, sizeof hello);
  std::vector<Address> table(static_cast<size_t>(size));
  if (!read_all(root, table.data(), table.size() * sizeof(Address))) throw std::runtime_error("emulated NCCL: the maker of the id is gone");
  ::close(root);
  std::shared_ptr<Wire> wire(new Wire);
  wire->peers_.resize(static_cast<size_t>(size));
  for (int peer = 0; peer < rank; ++peer) {
    int socket = wire->peers_[static_cast<size_t>(peer)].socket = connect_to(table[static_cast<size_t>(peer)]);
    write_all(socket, &hello, sizeof hello);
  }
  for (int missing = size - 1 - rank; missing > 0; --missing) {
    Hello theirs;
    int socket = accept_hello(listener, id.cookie, theirs);
    wire->peers_.at(static_cast<size_t>(theirs.rank)).socket = socket;
  }
  ::close(listener);
  for (Peer& peer : wire->peers_) {
    int on = 1;
    if (peer.socket >= 0) setsockopt(peer.socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  }
  wire->wake_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  std::thread([wire] { wire->serve(); }).detach();
  return wire;
}

Wire::~Wire() {
  for (Peer& peer : peers_)
    if (peer.socket >= 0) ::close(peer.socket);
  if (wake_ >= 0) ::close(wake_);
}

void Wire::wake() {
  uint64_t one = 1;
  if (::write(wake_, &one, sizeof one) < 0) return;  // it is awake
}

void Wire::send(int to, Kind kind, uint64_t sequence, uint64_t signature, Bytes bytes) {
  Header header{bytes.size(), sequence, signature, kind, 0};
  {
    std::lock_guard lock(mutex_);
    Peer& peer = peers_[static_cast<size_t>(to)];
    if (peer.socket < 0) return;
    const char* text = reinterpret_cast<const char*>(&header);
    peer.out.emplace_back(text, text + sizeof header);
    if (!bytes.empty()) peer.out.push_back(std::move(bytes));
  }
  wake();
}

bool Wire::has(int from, Kind kind, uint64_t sequence) {
  std::lock_guard lock(mutex_);
  return received_.contains({from, kind, sequence});
}

Bytes Wire::take(int from, Kind kind, uint64_t sequence, uint64_t signature) {
  std::lock_guard lock(mutex_);
  auto node = received_.extract({from, kind, sequence});
  if (node.mapped().signature != signature) throw std::runtime_error("emulated NCCL: the ranks made different calls");
  return std::move(node.mapped().bytes);
}

std::string Wire::failure() {
  std::lock_guard lock(mutex_);
  return failure_;
}

void Wire::close() {
  std::unique_lock lock(mutex_);
  for (Peer& peer : peers_) {
    if (peer.socket < 0) continue;
    Header goodbye{0, 0, 0, kGoodbye, 0};
    const char* text = reinterpret_cast<const char*>(&goodbye);
    peer.out.emplace_back(text, text + sizeof goodbye);
  }
  closing_ = true;
  auto is_sent = [&] { return std::all_of(peers_.begin(), peers_.end(), [](const Peer& peer) { return peer.socket < 0 || peer.out.empty(); }); };
  while (!is_sent()) {
    lock.unlock();
    wake();
    usleep(1000);
    lock.lock();
  }
  lock.unlock();
  wake();
}

void Wire::abort() {
  {
    std::lock_guard lock(mutex_);
    aborted_ = true;
  }
  wake();
}

// Until this rank aborts, or everybody has said goodbye.
void Wire::serve() {
  while (wait_for_sockets()) {
  }
}

bool Wire::wait_for_sockets() {
  std::vector<pollfd> polled{{wake_, POLLIN, 0}};
  {
    std::lock_guard lock(mutex_);
    bool done = closing_;
    for (Peer& peer : peers_) {
      polled.push_back({peer.socket, static_cast<short>(peer.out.empty() ? POLLIN : POLLIN | POLLOUT), 0});
      done = done && (peer.socket < 0 || (peer.said_goodbye && peer.out.empty()));
    }
    if (done || aborted_) {
      for (Peer& peer : peers_) {
        if (peer.socket >= 0) ::close(peer.socket);
        peer.socket = -1;
        peer.out.clear();
      }
      return false;
    }
  }
  poll(polled.data(), polled.size(), -1);
  uint64_t ignored;
  if (::read(wake_, &ignored, sizeof ignored) < 0 && errno != EAGAIN) return false;
  std::lock_guard lock(mutex_);
  for (size_t rank = 0; rank < peers_.size(); ++rank) {
    Peer& peer = peers_[rank];
    if (polled[rank + 1].revents & POLLOUT) write(peer);
    if (polled[rank + 1].revents & ~POLLOUT) read(static_cast<int>(rank), peer);
  }
  return true;
}

// A failure of the connection shows where it is read.
void Wire::write(Peer& peer) {
  while (!peer.out.empty()) {
    const Bytes& first = peer.out.front();
    ssize_t n = ::send(peer.socket, first.data() + peer.written, first.size() - peer.written, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0) return;
    peer.written += static_cast<size_t>(n);
    if (peer.written < first.size()) return;
    peer.out.pop_front();
    peer.written = 0;
  }
}

void Wire::read(int rank, Peer& peer) {
  for (;;) {
    char* to = peer.has_header ? peer.in.data() : reinterpret_cast<char*>(&peer.header);
    const size_t wanted = peer.has_header ? peer.in.size() : sizeof peer.header;
    if (peer.read < wanted) {
      ssize_t n = recv(peer.socket, to + peer.read, wanted - peer.read, MSG_DONTWAIT);
      if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
      if (n <= 0) return lose(rank, peer, n == 0 ? "closed the connection" : std::strerror(errno));
      peer.read += static_cast<size_t>(n);
      if (peer.read < wanted) continue;
    }
    peer.read = 0;
    if (!peer.has_header) peer.in.resize(peer.header.bytes);
    else received(rank, peer);
    peer.has_header = !peer.has_header;
  }
}

void Wire::received(int rank, Peer& peer) {
  if (peer.header.kind == kGoodbye) peer.said_goodbye = true;
  else received_[{rank, peer.header.kind, peer.header.sequence}] = {peer.header.signature, std::move(peer.in)};
}

void Wire::lose(int rank, Peer& peer, const std::string& why) {
  if (!peer.said_goodbye && failure_.empty()) failure_ = "rank " + std::to_string(rank) + " of the communicator: " + why;
  ::close(peer.socket);
  peer.socket = -1;
  peer.out.clear();
  peer.written = 0;
}

}  // namespace rz::emulator
