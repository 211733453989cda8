// Shared memory of one process: memfd segments, never a name under /dev/shm, so that nothing outlives the processes.
// A segment's number is never used twice.
#pragma once
#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <set>

#include "comm/socket.h"

namespace rz::comm {

// A mapping of a segment, unmapped with its last owner.
class Mapping {
 public:
  Mapping(int fd, size_t bytes, bool writable);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* data_;
  size_t bytes_;
};

// Backs a range with pages in one call; a page fault each would cost 13 µs per 4 KiB.
void populate(std::byte* data, size_t bytes);

// populate, or the opposite: whole pages of the range leave this process's map; shared memory keeps their values.
void set_pages(std::byte* data, size_t bytes, bool present);

// The segments this process owns. Any thread.
class SegmentTable {
 public:
  struct Owned {
    int id;
    std::byte* data;
    size_t bytes;
  };
  // Pages are not touched. Errors: ERR_OUT_OF_MEMORY.
  Owned create(size_t bytes);
  // Returns the ranks that had fetched the descriptor, to be told.
  std::set<int> destroy(int id);
  // The descriptor of a live segment and its size, noting that `rank` has it now; -1 if it is gone.
  int lend(int id, int rank, size_t& bytes);

 private:
  struct Entry {
    Fd fd;
    std::unique_ptr<Mapping> mapping;
    std::set<int> holders;
  };
  std::mutex mutex_;
  std::map<int, Entry> entries_;
  int next_ = 1;
};

}  // namespace rz::comm
