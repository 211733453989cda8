// Sockets: owned descriptors, listening and connecting with a deadline. All descriptors are close-on-exec.
#pragma once
#include <chrono>
#include <string>
#include <utility>

namespace rz::comm {

using Clock = std::chrono::steady_clock;

class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Fd() { reset(); }
  void reset();
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

// Non-blocking, IPv4 and IPv6. `loopback`: only this host can connect. `who` listens, for the error: ERR_STORE_PORT.
Fd listen_tcp(int port, bool loopback, const std::string& who);
// One attempt at each address of `host`; an empty Fd if nobody listens or the deadline passed. Errors: ERR_STORE_ADDRESS for a
// name unknown.
Fd connect_tcp(const std::string& host, int port, Clock::time_point deadline);
// Numeric addresses of a connected socket's ends; an IPv4 address that is mapped into IPv6 as IPv4.
std::string own_address(int fd);
std::string peer_address(int fd);
bool is_loopback(const std::string& address);
// No delay, and keep-alive probes: a host that vanished is an end of file after 40 s.
void tune_tcp(int fd);
// Abstract namespace: no file, gone with the last descriptor.
Fd listen_abstract(const std::string& name);
Fd connect_abstract(const std::string& name);

bool wait_readable(int fd, int milliseconds);
// False when the peer is gone or the deadline passed.
bool send_all(int fd, const void* data, size_t size, Clock::time_point deadline);
bool receive_all(int fd, void* data, size_t size, Clock::time_point deadline);

}  // namespace rz::comm
