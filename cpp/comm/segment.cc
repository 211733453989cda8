#include "comm/segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "core/error.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

namespace rz::comm {

Mapping::Mapping(int fd, size_t bytes, bool writable) : bytes_(bytes) {
  void* data = mmap(nullptr, bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) fail("ERR_OUT_OF_MEMORY", "cannot map ", bytes, " bytes of shared memory: ", std::strerror(errno));
  data_ = static_cast<std::byte*>(data);
  // Large pages where the system allows them for shared memory; harmless elsewhere.
  if (bytes >= (size_t{2} << 20)) madvise(data, bytes, MADV_HUGEPAGE);
}

Mapping::~Mapping() { munmap(data_, bytes_); }

void populate(std::byte* data, size_t bytes) {
  if (bytes == 0) return;
  const uintptr_t page = 4096;
  uintptr_t begin = reinterpret_cast<uintptr_t>(data) & ~(page - 1), end = reinterpret_cast<uintptr_t>(data) + bytes;
  // Pages of shared memory are made and mapped writable by reading too, and those that exist are mapped many at a time.
  if (madvise(reinterpret_cast<void*>(begin), end - begin, MADV_POPULATE_READ) == 0) return;
  if (errno != EINVAL) fail("ERR_OUT_OF_MEMORY", "no pages for ", bytes, " bytes of shared memory: ", std::strerror(errno));
  for (uintptr_t at = begin; at < end; at += page) {  // a kernel before 5.14
    reinterpret_cast<std::atomic<uint8_t>*>(at)->fetch_or(0, std::memory_order_relaxed);
  }
}

void set_pages(std::byte* data, size_t bytes, bool present) {
  if (present) return populate(data, bytes);
  const uintptr_t page = 4096;
  uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) & ~(page - 1), end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(page - 1);
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

SegmentTable::Owned SegmentTable::create(size_t bytes) {
  bytes = (bytes + 4095) & ~size_t{4095};
  Entry entry;
  entry.fd = Fd(memfd_create("rankzero", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!entry.fd) fail("ERR_OUT_OF_MEMORY", "cannot create shared memory: ", std::strerror(errno));
  if (ftruncate(entry.fd.get(), static_cast<off_t>(bytes)) != 0) {
    fail("ERR_OUT_OF_MEMORY", "cannot size shared memory to ", bytes, " bytes: ", std::strerror(errno));
  }
  // A peer can then never be hit by SIGBUS.
  fcntl(entry.fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  entry.mapping = std::make_unique<Mapping>(entry.fd.get(), bytes, true);
  Owned owned{0, entry.mapping->data(), bytes};
  std::lock_guard lock(mutex_);
  owned.id = next_++;
  entries_.emplace(owned.id, std::move(entry));
  return owned;
}

std::set<int> SegmentTable::destroy(int id) {
  std::lock_guard lock(mutex_);
  auto it = entries_.find(id);
  if (it == entries_.end()) return {};
  std::set<int> holders = std::move(it->second.holders);
  entries_.erase(it);
  return holders;
}

int SegmentTable::lend(int id, int rank, size_t& bytes) {
  std::lock_guard lock(mutex_);
  auto it = entries_.find(id);
  if (it == entries_.end()) return -1;
  it->second.holders.insert(rank);
  bytes = it->second.mapping->bytes();
  return dup(it->second.fd.get());
}

}  // namespace rz::comm
