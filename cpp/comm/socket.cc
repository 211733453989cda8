#include "comm/socket.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "core/error.h"

namespace rz::comm {
namespace {

int milliseconds_until(Clock::time_point deadline) {
  auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, 1 << 30));
}

sockaddr_un abstract_address(const std::string& name, socklen_t& length) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (name.size() + 1 > sizeof address.sun_path) fail("ERR_SYSTEM", "socket name ", name, " is too long");
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  return address;
}

}  // namespace

void Fd::reset() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

void tune_tcp(int fd) {
  int on = 1, idle = 10, count = 3;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &idle, sizeof idle);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
}

namespace {

// On IPv6 both families arrive; where the kernel has none, on IPv4.
Fd listen_on(int family, int port, bool loopback) {
  Fd fd(socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return Fd();
  int on = 1, off = 0;
  setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_storage address{};
  socklen_t size = sizeof(sockaddr_in);
  if (family == AF_INET6) {
    setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    auto& v6 = reinterpret_cast<sockaddr_in6&>(address);
    v6 = {};
    v6.sin6_family = AF_INET6;
    v6.sin6_port = htons(static_cast<uint16_t>(port));
    v6.sin6_addr = in6addr_any;
    size = sizeof v6;
  } else {
    auto& v4 = reinterpret_cast<sockaddr_in&>(address);
    v4.sin_family = AF_INET;
    v4.sin_port = htons(static_cast<uint16_t>(port));
    v4.sin_addr.s_addr = htonl(loopback ? INADDR_LOOPBACK : INADDR_ANY);
  }
  if (bind(fd.get(), reinterpret_cast<sockaddr*>(&address), size) != 0 || listen(fd.get(), 1024) != 0) return Fd();
  return fd;
}

Fd connect_to(const addrinfo& target, Clock::time_point deadline) {
  Fd fd(socket(target.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return Fd();
  if (connect(fd.get(), target.ai_addr, target.ai_addrlen) != 0) {
    if (errno != EINPROGRESS) return Fd();
    pollfd wanted{fd.get(), POLLOUT, 0};
    if (poll(&wanted, 1, std::min(milliseconds_until(deadline), 5000)) <= 0) return Fd();
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) return Fd();
  }
  // A client port may equal the port it connects to while nobody listens there: TCP then connects to itself.
  sockaddr_storage own{}, peer{};
  socklen_t own_size = sizeof own, peer_size = sizeof peer;
  getsockname(fd.get(), reinterpret_cast<sockaddr*>(&own), &own_size);
  getpeername(fd.get(), reinterpret_cast<sockaddr*>(&peer), &peer_size);
  if (own_size == peer_size && std::memcmp(&own, &peer, own_size) == 0) return Fd();
  tune_tcp(fd.get());
  return fd;
}

std::string text_of(const sockaddr_storage& address, socklen_t size) {
  char text[NI_MAXHOST] = {};
  if (getnameinfo(reinterpret_cast<const sockaddr*>(&address), size, text, sizeof text, nullptr, 0, NI_NUMERICHOST) != 0) return "";
  constexpr const char* kMapped = "::ffff:";
  std::string whole = text;
  return whole.starts_with(kMapped) && whole.find('.') != std::string::npos ? whole.substr(std::strlen(kMapped)) : whole;
}

}  // namespace

Fd listen_tcp(int port, bool loopback, const std::string& who) {
  Fd fd = loopback ? Fd() : listen_on(AF_INET6, port, false);
  const int why = errno;
  if (!fd && (loopback || why == EAFNOSUPPORT || why == EADDRNOTAVAIL)) fd = listen_on(AF_INET, port, loopback);
  if (!fd) {
    fail("ERR_STORE_PORT", who, " cannot listen on port ", port, " for the rendezvous store: ", std::strerror(errno),
         ". Set RANKZERO_PORT (default: MASTER_PORT + 1) to a free port on all ranks");
  }
  return fd;
}

Fd connect_tcp(const std::string& host, int port, Clock::time_point deadline) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  if (int error = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found); error != 0 || !found) {
    fail("ERR_STORE_ADDRESS", "the address of rank 0, MASTER_ADDR=", host, ", is unknown: ", gai_strerror(error));
  }
  Fd fd;
  for (const addrinfo* target = found; target && !fd; target = target->ai_next) fd = connect_to(*target, deadline);
  freeaddrinfo(found);
  return fd;
}

std::string own_address(int fd) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  return getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0 ? text_of(address, size) : "";
}

std::string peer_address(int fd) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  return getpeername(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0 ? text_of(address, size) : "";
}

bool is_loopback(const std::string& address) { return address.starts_with("127.") || address == "::1"; }

Fd listen_abstract(const std::string& name) {
  Fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  socklen_t length;
  sockaddr_un address = abstract_address(name, length);
  if (bind(fd.get(), reinterpret_cast<sockaddr*>(&address), length) != 0 || listen(fd.get(), 1024) != 0) {
    fail("ERR_SYSTEM", "cannot listen on the local socket ", name, ": ", std::strerror(errno));
  }
  return fd;
}

Fd connect_abstract(const std::string& name) {
  Fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  socklen_t length;
  sockaddr_un address = abstract_address(name, length);
  if (connect(fd.get(), reinterpret_cast<sockaddr*>(&address), length) != 0) return Fd();
  return fd;
}

bool wait_readable(int fd, int milliseconds) {
  pollfd wanted{fd, POLLIN, 0};
  return poll(&wanted, 1, milliseconds) > 0;
}

bool send_all(int fd, const void* data, size_t size, Clock::time_point deadline) {
  const char* from = static_cast<const char*>(data);
  while (size > 0) {
    ssize_t sent = send(fd, from, size, MSG_NOSIGNAL);
    if (sent > 0) {
      from += sent;
      size -= static_cast<size_t>(sent);
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      pollfd wanted{fd, POLLOUT, 0};
      if (poll(&wanted, 1, milliseconds_until(deadline)) <= 0) return false;
    } else if (errno != EINTR) {
      return false;
    }
  }
  return true;
}

bool receive_all(int fd, void* data, size_t size, Clock::time_point deadline) {
  char* into = static_cast<char*>(data);
  while (size > 0) {
    ssize_t got = recv(fd, into, size, 0);
    if (got > 0) {
      into += got;
      size -= static_cast<size_t>(got);
    } else if (got == 0) {
      return false;
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      if (!wait_readable(fd, milliseconds_until(deadline))) return false;
    } else if (errno != EINTR) {
      return false;
    }
  }
  return true;
}

}  // namespace rz::comm
