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

Fd listen_tcp(int port, bool loopback) {
  Fd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  int on = 1;
  setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(loopback ? INADDR_LOOPBACK : INADDR_ANY);
  if (bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 || listen(fd.get(), 1024) != 0) {
    fail("ERR_STORE_PORT", "rank 0 cannot listen on port ", port, " for the rendezvous store: ", std::strerror(errno),
         ". Set RANKZERO_PORT (default: MASTER_PORT + 1) to a free port on all ranks");
  }
  return fd;
}

Fd connect_tcp(const std::string& host, int port, Clock::time_point deadline) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_STREAM;
  if (int error = getaddrinfo(host.c_str(), nullptr, &hints, &found); error != 0 || !found) {
    fail("ERR_STORE_ADDRESS", "the address of rank 0, MASTER_ADDR=", host, ", is unknown: ", gai_strerror(error));
  }
  sockaddr_in address;
  std::memcpy(&address, found->ai_addr, sizeof address);
  freeaddrinfo(found);
  address.sin_port = htons(static_cast<uint16_t>(port));
  Fd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    if (errno != EINPROGRESS) return Fd();
    pollfd wanted{fd.get(), POLLOUT, 0};
    if (poll(&wanted, 1, std::min(milliseconds_until(deadline), 5000)) <= 0) return Fd();
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) return Fd();
  }
  // A client port may equal the port it connects to while nobody listens there: TCP then connects to itself.
  sockaddr_in own{};
  socklen_t size = sizeof own;
  getsockname(fd.get(), reinterpret_cast<sockaddr*>(&own), &size);
  if (own.sin_port == address.sin_port && own.sin_addr.s_addr == address.sin_addr.s_addr) return Fd();
  tune_tcp(fd.get());
  return fd;
}

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
