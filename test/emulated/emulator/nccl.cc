// In place of libnccl.so.2: the same calls between processes of one host. What a rank brings to a collective lies in a shared
// memory file of its own until everybody has read it. A call is a few tasks on its stream, none of which blocks, so streams
// may run in any order. Sums are of float32, in the order of the ranks.
#include "comm/nccl_api.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "queues.h"

using namespace rz;
using namespace rz::comm;
using rz::emulator::enqueue;

namespace {

constexpr int kMostRanks = 16, kInvalidArgument = 4, kInvalidUsage = 5, kSystemError = 2;

// In the shared memory of a communicator: how far each rank is.
struct Board {
  std::atomic<int> joined;
  std::atomic<uint64_t> brought[kMostRanks], read[kMostRanks];
  std::atomic<uint64_t> sent[kMostRanks][kMostRanks], received[kMostRanks][kMostRanks];
};

struct Comm {
  std::string name;
  int rank, size;
  Board* board;
  uint64_t calls = 0;
  uint64_t sent[kMostRanks] = {}, received[kMostRanks] = {};
  std::atomic<bool> aborted{false};
};

struct Call {
  CUstream_st* stream;
  std::function<void()> run;
  rz::emulator::Ready ready;
  // In a group, what waits for no peer is enqueued first, and the end of what began last.
  enum Phase { kBegins, kReceives, kEnds } phase = kBegins;
};
thread_local int group_depth = 0;
thread_local std::vector<Call> grouped;

// Calls of a group start together, at its end.
int launch(Call call) {
  if (group_depth > 0) grouped.push_back(std::move(call));
  else enqueue(call.stream, std::move(call.run), std::move(call.ready));
  return 0;
}

size_t width(int type) {
  switch (type) {
    case nccl::kUint8: return 1;
    case nccl::kFloat16: case nccl::kBFloat16: return 2;
    case nccl::kInt64: return 8;
    default: return 4;
  }
}

void put(const std::string& name, const void* data, size_t bytes) {
  int fd = shm_open(name.c_str(), O_CREAT | O_EXCL | O_RDWR, 0600);
  if (fd < 0 || ftruncate(fd, static_cast<off_t>(std::max<size_t>(bytes, 1))) != 0) throw std::runtime_error("emulated NCCL: no shared memory");
  if (bytes > 0) {
    void* to = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    std::memcpy(to, data, bytes);
    munmap(to, bytes);
  }
  close(fd);
}

std::vector<char> get(const std::string& name, size_t bytes) {
  std::vector<char> data(bytes);
  int fd = shm_open(name.c_str(), O_RDONLY, 0);
  off_t there = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
  // Other ranks made another call, or the same with other sizes.
  if (there != static_cast<off_t>(std::max<size_t>(bytes, 1))) throw std::runtime_error("emulated NCCL: the ranks made different calls");
  if (pread(fd, data.data(), bytes, 0) != static_cast<ssize_t>(bytes)) throw std::runtime_error("emulated NCCL: cannot read");
  close(fd);
  return data;
}

std::string file_of(const Comm& comm, int rank, uint64_t call) { return comm.name + "-" + std::to_string(rank) + "-" + std::to_string(call); }

// Everybody brings `bytes` of `in`, then `use` gets what all brought.
int exchange(Comm* comm, const void* in, size_t bytes, nccl::Stream stream, std::function<void(std::vector<std::vector<char>>&)> use) {
  const uint64_t call = ++comm->calls;
  auto all = [comm, call](std::atomic<uint64_t>* far) {
    return comm->aborted || std::all_of(far, far + comm->size, [&](auto& f) { return f.load() >= call; });
  };
  launch({stream, [=] {
    if (comm->aborted) return;
    put(file_of(*comm, comm->rank, call), in, bytes);
    comm->board->brought[comm->rank] = call;
  }, {}});
  launch({stream, [=] {
    if (comm->aborted) return;
    std::vector<std::vector<char>> parts;
    for (int r = 0; r < comm->size; ++r) parts.push_back(get(file_of(*comm, r, call), bytes));
    use(parts);
    comm->board->read[comm->rank] = call;
  }, [=] { return all(comm->board->brought); }});
  return launch({stream, [=] { shm_unlink(file_of(*comm, comm->rank, call).c_str()); }, [=] { return all(comm->board->read); }});
}

float load(int type, const char* data, size_t i) {
  switch (type) {
    case nccl::kFloat16: return to_float(reinterpret_cast<const f16*>(data)[i]);
    case nccl::kBFloat16: return to_float(reinterpret_cast<const bf16*>(data)[i]);
    default: return reinterpret_cast<const float*>(data)[i];
  }
}
void store(int type, char* data, size_t i, float x) {
  switch (type) {
    case nccl::kFloat16: reinterpret_cast<f16*>(data)[i] = to_f16(x); break;
    case nccl::kBFloat16: reinterpret_cast<bf16*>(data)[i] = to_bf16(x); break;
    default: reinterpret_cast<float*>(data)[i] = x;
  }
}

template <class T>
T combine(int op, T a, T b) {
  if (op == nccl::kMax) return std::max(a, b);
  if (op == nccl::kMin) return std::min(a, b);
  return static_cast<T>(a + b);
}

template <class T>
void reduce_integers(std::vector<std::vector<char>>& parts, size_t first, size_t count, int op, void* out) {
  for (size_t i = 0; i < count; ++i) {
    T value = reinterpret_cast<T*>(parts[0].data())[first + i];
    for (size_t r = 1; r < parts.size(); ++r) value = combine(op, value, reinterpret_cast<T*>(parts[r].data())[first + i]);
    static_cast<T*>(out)[i] = value;
  }
}

void reduce(std::vector<std::vector<char>>& parts, size_t first, size_t count, int type, int op, void* out) {
  if (type == nccl::kUint8) return reduce_integers<uint8_t>(parts, first, count, op, out);
  if (type == nccl::kInt32) return reduce_integers<int32_t>(parts, first, count, op, out);
  if (type == nccl::kInt64) return reduce_integers<int64_t>(parts, first, count, op, out);
  for (size_t i = 0; i < count; ++i) {
    float value = load(type, parts[0].data(), first + i);
    for (size_t r = 1; r < parts.size(); ++r) value = combine(op, value, load(type, parts[r].data(), first + i));
    store(type, static_cast<char*>(out), i, op == nccl::kAvg ? value / static_cast<float>(parts.size()) : value);
  }
}

Comm* as_comm(nccl::Comm comm) { return static_cast<Comm*>(comm); }

// A call of the host, while it lasts: the real library frees a communicator that is aborted.
class HostCall {
 public:
  explicit HostCall(nccl::Comm comm) : comm_(*as_comm(comm)) { expect_alive(); }
  ~HostCall() {
    if (const char* slow = std::getenv("RANKZERO_EMULATED_NCCL_CALL_MS")) usleep(static_cast<useconds_t>(std::atoi(slow)) * 1000);
    expect_alive();
  }

 private:
  void expect_alive() const {
    if (!comm_.aborted) return;
    std::fprintf(stderr, "emulated NCCL: a call used a communicator that was aborted\n");
    _exit(70);
  }
  const Comm& comm_;
};

}  // namespace

extern "C" {

int ncclGetVersion(int* version) {
  *version = 22700;
  return 0;
}
const char* ncclGetErrorString(int result) { return result == kInvalidUsage ? "invalid usage" : result == 0 ? "no error" : "error"; }
const char* ncclGetLastError(nccl::Comm) { return ""; }

int ncclGetUniqueId(nccl::UniqueId* id) {
  std::random_device random;
  std::snprintf(id->bytes, sizeof id->bytes, "/rz-nccl-%08x%08x", random(), random());
  return 0;
}

int ncclCommInitRank(nccl::Comm* out, int size, nccl::UniqueId id, int rank) {
  if (size > kMostRanks || rank < 0 || rank >= size) return kInvalidArgument;
  id.bytes[sizeof id.bytes - 1] = 0;
  if (std::getenv("RANKZERO_EMULATED_DIES_CONNECTING")) kill(getpid(), SIGKILL);
  int fd = shm_open(id.bytes, O_CREAT | O_RDWR, 0600);
  if (fd < 0 || ftruncate(fd, sizeof(Board)) != 0) return kSystemError;
  void* board = mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  auto* comm = new Comm{id.bytes, rank, size, static_cast<Board*>(board)};
  comm->board->joined.fetch_add(1);
  while (comm->board->joined.load() < size) usleep(1000);
  shm_unlink(id.bytes);  // a second time it is gone already
  *out = comm;
  return 0;
}

// What this rank's last calls left: the process may end before the tasks that would take it away.
static void forget_files(const Comm& comm) {
  for (uint64_t call = comm.calls > 8 ? comm.calls - 8 : 1; call <= comm.calls; ++call) shm_unlink(file_of(comm, comm.rank, call).c_str());
}

int ncclCommDestroy(nccl::Comm comm) {
  forget_files(*as_comm(comm));
  munmap(as_comm(comm)->board, sizeof(Board));
  delete as_comm(comm);
  return 0;
}

int ncclCommAbort(nccl::Comm comm) {
  as_comm(comm)->aborted = true;  // tasks that are queued still hold it
  forget_files(*as_comm(comm));
  return 0;
}

int ncclCommGetAsyncError(nccl::Comm, int* result) {
  *result = 0;
  return 0;
}

int ncclBroadcast(const void* in, void* out, size_t count, int type, int root, nccl::Comm comm, nccl::Stream stream) {
  HostCall lasts(comm);
  const size_t bytes = count * width(type);
  return exchange(as_comm(comm), in, bytes, stream, [=](auto& parts) { std::memcpy(out, parts[static_cast<size_t>(root)].data(), bytes); });
}

int ncclAllReduce(const void* in, void* out, size_t count, int type, int op, nccl::Comm comm, nccl::Stream stream) {
  HostCall lasts(comm);
  return exchange(as_comm(comm), in, count * width(type), stream, [=](auto& parts) { reduce(parts, 0, count, type, op, out); });
}

int ncclAllGather(const void* in, void* out, size_t count, int type, nccl::Comm comm, nccl::Stream stream) {
  HostCall lasts(comm);
  const size_t bytes = count * width(type);
  return exchange(as_comm(comm), in, bytes, stream, [=](auto& parts) {
    for (size_t r = 0; r < parts.size(); ++r) std::memcpy(static_cast<char*>(out) + r * bytes, parts[r].data(), bytes);
  });
}

int ncclReduceScatter(const void* in, void* out, size_t count, int type, int op, nccl::Comm comm, nccl::Stream stream) {
  HostCall lasts(comm);
  const int rank = as_comm(comm)->rank, size = as_comm(comm)->size;
  return exchange(as_comm(comm), in, count * width(type) * static_cast<size_t>(size), stream,
                  [=](auto& parts) { reduce(parts, static_cast<size_t>(rank) * count, count, type, op, out); });
}

// As the real one, a message completes when it was received: two ranks that both send first, outside of a group, wait for ever.
int ncclSend(const void* in, size_t count, int type, int to, nccl::Comm comm_, nccl::Stream stream) {
  HostCall lasts(comm_);
  Comm* comm = as_comm(comm_);
  const uint64_t turn = ++comm->sent[to];
  launch({stream, [=] {
    if (comm->aborted) return;
    put(comm->name + "-to-" + std::to_string(to) + "-" + std::to_string(comm->rank) + "-" + std::to_string(turn), in, count * width(type));
    comm->board->sent[comm->rank][to] = turn;
  }, {}});
  return launch({stream, [] {}, [=] { return comm->aborted || comm->board->received[comm->rank][to].load() >= turn; }, Call::kEnds});
}

int ncclRecv(void* out, size_t count, int type, int from, nccl::Comm comm_, nccl::Stream stream) {
  HostCall lasts(comm_);
  Comm* comm = as_comm(comm_);
  const uint64_t turn = ++comm->received[from];
  return launch({stream, [=] {
    if (comm->aborted) return;
    std::string name = comm->name + "-to-" + std::to_string(comm->rank) + "-" + std::to_string(from) + "-" + std::to_string(turn);
    std::vector<char> data = get(name, count * width(type));
    std::memcpy(out, data.data(), data.size());
    shm_unlink(name.c_str());
    comm->board->received[from][comm->rank] = turn;
  }, [=] { return comm->aborted || comm->board->sent[from][comm->rank].load() >= turn; }, Call::kReceives});
}

int ncclGroupStart() {
  ++group_depth;
  return 0;
}

int ncclGroupEnd() {
  if (group_depth == 0) return kInvalidUsage;
  if (--group_depth > 0) return 0;
  for (auto phase : {Call::kBegins, Call::kReceives, Call::kEnds})
    for (Call& call : grouped)
      if (call.phase == phase) enqueue(call.stream, std::move(call.run), std::move(call.ready));
  grouped.clear();
  return 0;
}

}  // extern "C"
