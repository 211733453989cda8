// How ranks of one host read each other's segments: descriptors travel over an abstract unix socket that a native
// thread serves. A mapping is kept until the owner says that the segment is gone; the owner says so only when no
// collective can read it any more (see shared_storage.h), so that unmapping at once is safe.
#pragma once
#include <atomic>
#include <map>
#include <memory>
#include <thread>
#include <utility>

#include "comm/job_state.h"
#include "comm/segment.h"

namespace rz::comm {

// One rank's mapping of memory that several ranks write, and the descriptor behind it.
struct WholeSegment {
  Fd fd;
  std::unique_ptr<Mapping> mapping;
  int own = 0;  // number of the segment at the rank that made it; 0 elsewhere
  int64_t key = 0;  // the same at every rank
};

class SegmentExchange {
 public:
  // `job`: a public name; `token`: 32 bytes that only ranks of the job can know.
  SegmentExchange(std::string job, std::string token, std::shared_ptr<JobState> state);
  ~SegmentExchange();

  SegmentTable& own() { return own_; }
  // Really frees an own segment, and tells the peers that mapped it.
  void destroy(int id);
  // Read-only and cached; valid until the owner frees the segment. Waits, at most for the peer's native thread.
  const std::byte* map(int rank, int id, const Doing& doing);
  // A writable mapping of the caller's own, never taken away.
  std::unique_ptr<Mapping> map_writable(int rank, int id, const Doing& doing);
  // Memory for all ranks of a group: made by one of them, mapped writable by the others.
  WholeSegment make_whole(size_t bytes);
  WholeSegment map_whole(int rank, int id, const Doing& doing);
  size_t mapped() const;  // cached mappings alive

 private:
  struct Request {
    char token[32];
    uint32_t type;  // kFetch, kGone
    int32_t rank;   // of the sender
    int32_t id;
  };
  void serve();
  void answer(Fd peer);
  Fd fetch(int rank, int id, size_t& bytes, const Doing& doing);
  std::string socket_name(int rank) const { return "rankzero-" + job_ + "-" + std::to_string(rank); }
  Request request(uint32_t type, int id) const;
  static int64_t whole_key(int rank, int id);

  std::string job_, token_;
  std::shared_ptr<JobState> state_;
  SegmentTable own_;
  mutable std::mutex mutex_;
  std::map<std::pair<int, int>, std::unique_ptr<Mapping>> peers_;
  Fd listener_, wake_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace rz::comm
