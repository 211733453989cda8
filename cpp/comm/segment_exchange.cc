#include "comm/segment_exchange.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>

#include "comm/sha256.h"

namespace rz::comm {
namespace {

constexpr uint32_t kFetch = 1, kGone = 2;

bool send_descriptor(int socket, int fd, int64_t bytes) {
  iovec payload{&bytes, sizeof bytes};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &payload;
  message.msg_iovlen = 1;
  if (fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  }
  return sendmsg(socket, &message, MSG_NOSIGNAL) == static_cast<ssize_t>(sizeof bytes);
}

Fd receive_descriptor(int socket, int64_t& bytes) {
  bytes = -2;  // not even an answer
  iovec payload{&bytes, sizeof bytes};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &payload;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != static_cast<ssize_t>(sizeof bytes)) return Fd();
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (!header || header->cmsg_type != SCM_RIGHTS) return Fd();
  int fd;
  std::memcpy(&fd, CMSG_DATA(header), sizeof fd);
  return Fd(fd);
}

}  // namespace

SegmentExchange::SegmentExchange(std::string job, std::string token, std::shared_ptr<JobState> state)
    : job_(std::move(job)), token_(std::move(token)), state_(std::move(state)), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  listener_ = listen_abstract(socket_name(state_->rank()));
  thread_ = std::thread([this] { serve(); });
  pthread_setname_np(thread_.native_handle(), "rz-segments");
}

SegmentExchange::~SegmentExchange() {
  stop_ = true;
  uint64_t one = 1;
  [[maybe_unused]] ssize_t written = write(wake_.get(), &one, sizeof one);
  thread_.join();
}

SegmentExchange::Request SegmentExchange::request(uint32_t type, int id) const {
  Request request{{}, type, state_->rank(), id};
  std::memcpy(request.token, token_.data(), sizeof request.token);
  return request;
}

void SegmentExchange::serve() {
  while (!stop_) {
    pollfd polled[2] = {{listener_.get(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
    poll(polled, 2, 1000);
    if (!(polled[0].revents & POLLIN)) continue;
    Fd peer(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (peer) answer(std::move(peer));
  }
}

void SegmentExchange::answer(Fd peer) {
  ucred who{};
  socklen_t size = sizeof who;
  getsockopt(peer.get(), SOL_SOCKET, SO_PEERCRED, &who, &size);
  if (who.uid != geteuid()) return;
  Request asked;
  if (!receive_all(peer.get(), &asked, sizeof asked, Clock::now() + std::chrono::seconds(1))) return;
  if (!equal_in_constant_time({asked.token, sizeof asked.token}, token_)) return;
  if (asked.type == kFetch) {
    size_t bytes = 0;
    Fd fd(own_.lend(asked.id, asked.rank, bytes));
    send_descriptor(peer.get(), fd.get(), fd ? static_cast<int64_t>(bytes) : -1);
  } else if (asked.type == kGone) {
    std::lock_guard lock(mutex_);
    peers_.erase({asked.rank, asked.id});
  }
}

Fd SegmentExchange::fetch(int rank, int id, size_t& bytes, const Doing& doing) {
  Request wanted = request(kFetch, id);
  Fd fd;
  bool gone = false;
  wait_for(
      *state_, doing, rank,
      [&] {
        Fd socket = connect_abstract(socket_name(rank));
        auto deadline = Clock::now() + std::chrono::seconds(5);
        if (!socket || !send_all(socket.get(), &wanted, sizeof wanted, deadline) || !wait_readable(socket.get(), 5000)) return false;
        int64_t size = 0;
        fd = receive_descriptor(socket.get(), size);
        bytes = static_cast<size_t>(size);
        gone = !fd && size == -1;
        return fd || gone;
      },
      [] { usleep(20'000); });
  if (!fd) fail("ERR_SHARED_MEMORY", "rank ", rank, " no longer has segment ", id, " that ", doing.text(), " needs");
  return fd;
}

const std::byte* SegmentExchange::map(int rank, int id, const Doing& doing) {
  {
    std::lock_guard lock(mutex_);
    auto it = peers_.find({rank, id});
    if (it != peers_.end()) return it->second->data();
  }
  size_t bytes = 0;
  Fd fd = fetch(rank, id, bytes, doing);
  auto mapping = std::make_unique<Mapping>(fd.get(), bytes, false);
  std::lock_guard lock(mutex_);
  auto [it, added] = peers_.try_emplace({rank, id}, std::move(mapping));
  return it->second->data();
}

std::unique_ptr<Mapping> SegmentExchange::map_writable(int rank, int id, const Doing& doing) {
  size_t bytes = 0;
  Fd fd = fetch(rank, id, bytes, doing);
  return std::make_unique<Mapping>(fd.get(), bytes, true);
}

int64_t SegmentExchange::whole_key(int rank, int id) { return (int64_t{rank + 1} << 32) | id; }

WholeSegment SegmentExchange::make_whole(size_t bytes) {
  int id = own_.create(bytes).id;
  size_t size = 0;
  Fd fd(own_.lend(id, state_->rank(), size));
  auto mapping = std::make_unique<Mapping>(fd.get(), size, true);
  return {std::move(fd), std::move(mapping), id, whole_key(state_->rank(), id)};
}

WholeSegment SegmentExchange::map_whole(int rank, int id, const Doing& doing) {
  size_t bytes = 0;
  Fd fd = fetch(rank, id, bytes, doing);
  auto mapping = std::make_unique<Mapping>(fd.get(), bytes, true);
  return {std::move(fd), std::move(mapping), 0, whole_key(rank, id)};
}

void SegmentExchange::destroy(int id) {
  Request gone = request(kGone, id);
  for (int rank : own_.destroy(id)) {
    Fd socket = connect_abstract(socket_name(rank));  // a peer that left has no mappings either
    if (socket) send_all(socket.get(), &gone, sizeof gone, Clock::now() + std::chrono::milliseconds(200));
  }
}

size_t SegmentExchange::mapped() const {
  std::lock_guard lock(mutex_);
  return peers_.size();
}

}  // namespace rz::comm
