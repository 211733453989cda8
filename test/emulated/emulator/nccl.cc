// In place of libnccl.so.2: the same calls between real processes, whose bytes go over TCP (nccl_wire). A call is a few tasks on
// its stream, none of which blocks, so streams may run in any order. Sums are of float32, in the order of the ranks.
// Environment: RANKZERO_EMULATED_NCCL_VERSION (as 22105); _NCCL_LOG, a prefix of files with the calls of each process;
// _HOLD_REDUCTION=k:n: the k-th reduce-scatter of a process begins when n gathers that were called after it are done.
#include "comm/nccl_api.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/dtype.h"
#include "nccl_wire.h"
#include "queues.h"

using namespace rz;
using namespace rz::comm;
using rz::emulator::Bytes;
using rz::emulator::enqueue;
using rz::emulator::Wire;

namespace {

constexpr int kInvalidArgument = 4, kInvalidUsage = 5, kSystemError = 2, kRemoteError = 6;

int version() {
  const char* text = std::getenv("RANKZERO_EMULATED_NCCL_VERSION");
  return text ? std::atoi(text) : 22700;
}

struct Comm {
  std::shared_ptr<Wire> wire;
  int rank, size, index;
  uint64_t calls = 0;
  std::vector<uint64_t> sent, received;
  std::set<std::string> called;
  std::atomic<bool> aborted{false};
  std::atomic<int> running{0};  // calls whose kernels are on the device
};
std::mutex comms_mutex;
std::vector<Comm*> comms;
int comms_made = 0;

struct Call {
  CUstream_st* stream;
  std::function<void()> run;
  rz::emulator::Ready ready;
  // In a group, what waits for no peer is enqueued first, and the end of what began last.
  enum Phase { kBegins, kReceives, kEnds } phase = kBegins;
};
thread_local int group_depth = 0;
thread_local std::vector<Call> grouped;
thread_local std::vector<Comm*> aborting;

// Calls of a group start together, at its end. On a stream they are one kernel.
int launch(Call call) {
  if (group_depth > 0) grouped.push_back(std::move(call));
  else enqueue(call.stream, std::move(call.run), std::move(call.ready), call.phase == Call::kBegins);
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

// What all ranks of a call must agree on.
uint64_t signature(int what, size_t count, int type, int more = 0) {
  return (static_cast<uint64_t>(count) << 20) | static_cast<uint64_t>(what << 16 | type << 8 | more);
}

Bytes bytes_at(const void* data, size_t bytes) { return {static_cast<const char*>(data), static_cast<const char*>(data) + bytes}; }

// One call of a communicator, on a stream: begin, then what follows when parts of others have come, then end.
class Collective {
 public:
  Collective(Comm* comm, nccl::Stream stream, uint64_t signature) : comm_(comm), stream_(stream), call_(++comm->calls), signature_(signature) {}

  void begin(std::function<void()> run, rz::emulator::Ready ready = {}) const {
    launch({stream_, [comm = comm_, run] {
      ++comm->running;
      if (!comm->aborted) run();
    }, [comm = comm_, ready] { return comm->aborted || !ready || ready(); }});
  }
  // When the parts of `phase` of all others have come: with them, and at `own` what this rank has itself.
  void with_parts(int phase, std::shared_ptr<Bytes> own, std::function<void(std::vector<Bytes>&)> run, bool last) const {
    std::vector<int> all;
    for (int r = 0; r < comm_->size; ++r) all.push_back(r);
    with_parts_of(all, phase, std::move(own), std::move(run), last);
  }
  void with_parts_of(std::vector<int> ranks, int phase, std::shared_ptr<Bytes> own, std::function<void(std::vector<Bytes>&)> run, bool last) const {
    std::erase(ranks, comm_->rank);
    launch({stream_, [self = *this, ranks, phase, own, run, last] {
      Comm* comm = self.comm_;
      if (!comm->aborted) {
        std::vector<Bytes> parts(static_cast<size_t>(comm->size));
        for (int r : ranks) parts[static_cast<size_t>(r)] = comm->wire->take(r, Wire::kCollective, self.sequence(phase), self.signature_);
        if (own) parts[static_cast<size_t>(comm->rank)] = *own;
        run(parts);
      }
      if (last) --comm->running;
    }, [self = *this, ranks, phase] {
      return self.comm_->aborted ||
             std::all_of(ranks.begin(), ranks.end(), [&](int r) { return self.comm_->wire->has(r, Wire::kCollective, self.sequence(phase)); });
    }, last ? Call::kEnds : Call::kReceives});
  }
  void send(int to, int phase, Bytes bytes) const {
    if (to != comm_->rank) comm_->wire->send(to, Wire::kCollective, sequence(phase), signature_, std::move(bytes));
  }

 private:
  uint64_t sequence(int phase) const { return 2 * call_ + static_cast<uint64_t>(phase); }
  Comm* comm_;
  nccl::Stream stream_;
  uint64_t call_, signature_;
};

// Gathers that were called and that are done, for _HOLD_REDUCTION.
std::mutex gathers_mutex;
uint64_t gathers_called = 0;
std::set<uint64_t> gathers_done;

uint64_t next_gather() {
  std::lock_guard lock(gathers_mutex);
  return ++gathers_called;
}
void gather_is_done(uint64_t which) {
  std::lock_guard lock(gathers_mutex);
  gathers_done.insert(which);
}
rz::emulator::Ready held_reduction() {
  static std::atomic<int> reductions{0};
  const char* text = std::getenv("RANKZERO_EMULATED_HOLD_REDUCTION");
  int which = 0;
  uint64_t gathers = 0;
  if (!text || std::sscanf(text, "%d:%lu", &which, &gathers) != 2 || ++reductions != which) return {};
  std::lock_guard lock(gathers_mutex);
  return [until = gathers_called + gathers] {
    std::lock_guard inner(gathers_mutex);
    return gathers_done.contains(until);
  };
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
void reduce_integers(std::vector<Bytes>& parts, size_t count, int op, void* out) {
  for (size_t i = 0; i < count; ++i) {
    T value = reinterpret_cast<T*>(parts[0].data())[i];
    for (size_t r = 1; r < parts.size(); ++r) value = combine(op, value, reinterpret_cast<T*>(parts[r].data())[i]);
    static_cast<T*>(out)[i] = value;
  }
}

void reduce(std::vector<Bytes>& parts, size_t count, int type, int op, void* out) {
  if (type == nccl::kUint8) return reduce_integers<uint8_t>(parts, count, op, out);
  if (type == nccl::kInt32) return reduce_integers<int32_t>(parts, count, op, out);
  if (type == nccl::kInt64) return reduce_integers<int64_t>(parts, count, op, out);
  for (size_t i = 0; i < count; ++i) {
    float value = load(type, parts[0].data(), i);
    for (size_t r = 1; r < parts.size(); ++r) value = combine(op, value, load(type, parts[r].data(), i));
    store(type, static_cast<char*>(out), i, op == nccl::kAvg ? value / static_cast<float>(parts.size()) : value);
  }
}

Comm* as_comm(nccl::Comm comm) { return static_cast<Comm*>(comm); }

// A call of the host, while it lasts: the real library frees a communicator that is aborted.
class HostCall {
 public:
  HostCall(nccl::Comm comm, const char* what, size_t count) : comm_(*as_comm(comm)) {
    expect_alive();
    if (comm_.called.insert(what).second) rz::emulator::wait_for_device(std::string("the first nccl") + what + " of a communicator");
    const char* prefix = std::getenv("RANKZERO_EMULATED_NCCL_LOG");
    if (!prefix) return;
    FILE* log = std::fopen((prefix + std::to_string(getpid())).c_str(), "a");
    std::fprintf(log, "%s %zu of communicator %d\n", what, count, comm_.index);
    std::fclose(log);
  }
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
  Comm& comm_;
};

// What the real library does to free memory: waits for the device, and so for the kernels of communicators that are not aborted.
void wait_for_device() {
  auto is_busy = [] {
    std::lock_guard lock(comms_mutex);
    return std::any_of(comms.begin(), comms.end(), [](const Comm* comm) { return !comm->aborted && comm->running > 0; });
  };
  while (!*rz::emulator::failure() && is_busy())
    if (!rz::emulator::advance()) usleep(500);
}

void abort_all(const std::vector<Comm*>& these) {
  for (Comm* comm : these) {
    comm->aborted = true;  // tasks that are queued still hold it
    comm->wire->abort();
  }
  wait_for_device();
}

}  // namespace

extern "C" {

int ncclGetVersion(int* number) {
  *number = version();
  return 0;
}
const char* ncclGetErrorString(int result) {
  if (result == kRemoteError) return "remote process exited or there was a network error";
  return result == kInvalidUsage ? "invalid usage" : result == 0 ? "no error" : "error";
}
const char* ncclGetLastError(nccl::Comm comm) {
  thread_local std::string last;
  last = comm ? as_comm(comm)->wire->failure() : "";
  return last.c_str();
}

int ncclGetUniqueId(nccl::UniqueId* id) {
  try {
    Wire::make_id(id->bytes);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return kSystemError;
  }
  return 0;
}

int ncclCommInitRank(nccl::Comm* out, int size, nccl::UniqueId id, int rank) {
  if (rank < 0 || rank >= size) return kInvalidArgument;
  if (std::getenv("RANKZERO_EMULATED_DIES_CONNECTING")) kill(getpid(), SIGKILL);
  if (!rz::emulator::wait_for_device("ncclCommInitRank")) return kSystemError;
  auto* comm = new Comm;
  comm->rank = rank;
  comm->size = size;
  comm->sent.resize(static_cast<size_t>(size));
  comm->received.resize(static_cast<size_t>(size));
  try {
    comm->wire = Wire::connect(id.bytes, rank, size);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    delete comm;
    return kSystemError;
  }
  std::lock_guard lock(comms_mutex);
  comm->index = comms_made++;
  comms.push_back(comm);
  *out = comm;
  return 0;
}

int ncclCommDestroy(nccl::Comm comm) {
  as_comm(comm)->wire->close();
  std::lock_guard lock(comms_mutex);
  std::erase(comms, as_comm(comm));
  delete as_comm(comm);
  return 0;
}

int ncclCommAbort(nccl::Comm comm) {
  if (group_depth > 0 && version() >= 22200) aborting.push_back(as_comm(comm));
  else abort_all({as_comm(comm)});
  return 0;
}

int ncclCommGetAsyncError(nccl::Comm comm, int* result) {
  *result = as_comm(comm)->wire->failure().empty() ? 0 : kRemoteError;
  return 0;
}

// From each rank to the next, so that the bytes go to another host once where ranks of a host are neighbours.
int ncclBroadcast(const void* in, void* out, size_t count, int type, int root, nccl::Comm comm_, nccl::Stream stream) {
  HostCall lasts(comm_, "Broadcast", count);
  Comm* comm = as_comm(comm_);
  const size_t bytes = count * width(type);
  const int next = (comm->rank + 1) % comm->size, before = (comm->rank + comm->size - 1) % comm->size;
  const Collective call(comm, stream, signature(0, count, type, root));
  call.begin([=] {
    if (comm->rank != root) return;
    call.send(next, 0, bytes_at(in, bytes));
    std::memmove(out, in, bytes);
  });
  call.with_parts_of(comm->rank == root ? std::vector<int>{} : std::vector<int>{before}, 0, nullptr, [=](auto& parts) {
    if (comm->rank == root) return;
    Bytes& part = parts[static_cast<size_t>(before)];
    std::memcpy(out, part.data(), bytes);
    if (next != root) call.send(next, 0, std::move(part));
  }, true);
  return 0;
}

// Each rank sums a part, then all get all parts.
int ncclAllReduce(const void* in, void* out, size_t count, int type, int op, nccl::Comm comm_, nccl::Stream stream) {
  HostCall lasts(comm_, "AllReduce", count);
  Comm* comm = as_comm(comm_);
  const auto size = static_cast<size_t>(comm->size), rank = static_cast<size_t>(comm->rank), one = width(type);
  auto first = [=](size_t r) { return r * count / size; };
  auto own = std::make_shared<Bytes>();
  const Collective call(comm, stream, signature(1, count, type, op));
  call.begin([=] {
    for (size_t r = 0; r < size; ++r) {
      Bytes part = bytes_at(static_cast<const char*>(in) + first(r) * one, (first(r + 1) - first(r)) * one);
      if (r == rank) *own = std::move(part);
      else call.send(static_cast<int>(r), 0, std::move(part));
    }
  });
  call.with_parts(0, own, [=](auto& parts) {
    reduce(parts, first(rank + 1) - first(rank), type, op, own->data());
    for (size_t r = 0; r < size; ++r) call.send(static_cast<int>(r), 1, *own);
  }, false);
  call.with_parts(1, own, [=](auto& parts) {
    for (size_t r = 0; r < size; ++r) std::memcpy(static_cast<char*>(out) + first(r) * one, parts[r].data(), parts[r].size());
  }, true);
  return 0;
}

int ncclAllGather(const void* in, void* out, size_t count, int type, nccl::Comm comm_, nccl::Stream stream) {
  HostCall lasts(comm_, "AllGather", count);
  Comm* comm = as_comm(comm_);
  const size_t bytes = count * width(type);
  auto own = std::make_shared<Bytes>();
  const Collective call(comm, stream, signature(2, count, type));
  const uint64_t which = next_gather();
  call.begin([=] {
    *own = bytes_at(in, bytes);
    for (int r = 0; r < comm->size; ++r) call.send(r, 0, *own);
  });
  call.with_parts(0, own, [=](auto& parts) {
    for (size_t r = 0; r < parts.size(); ++r) std::memcpy(static_cast<char*>(out) + r * bytes, parts[r].data(), bytes);
    gather_is_done(which);
  }, true);
  return 0;
}

int ncclReduceScatter(const void* in, void* out, size_t count, int type, int op, nccl::Comm comm_, nccl::Stream stream) {
  HostCall lasts(comm_, "ReduceScatter", count);
  Comm* comm = as_comm(comm_);
  const size_t bytes = count * width(type);
  auto own = std::make_shared<Bytes>();
  const Collective call(comm, stream, signature(3, count, type, op));
  call.begin([=] {
    for (int r = 0; r < comm->size; ++r) {
      Bytes part = bytes_at(static_cast<const char*>(in) + static_cast<size_t>(r) * bytes, bytes);
      if (r == comm->rank) *own = std::move(part);
      else call.send(r, 0, std::move(part));
    }
  }, held_reduction());
  call.with_parts(0, own, [=](auto& parts) { reduce(parts, count, type, op, out); }, true);
  return 0;
}

// As the real one, a message completes when it was received: two ranks that both send first, outside of a group, wait for ever.
int ncclSend(const void* in, size_t count, int type, int to, nccl::Comm comm_, nccl::Stream stream) {
  HostCall lasts(comm_, "Send", count);
  Comm* comm = as_comm(comm_);
  const uint64_t turn = ++comm->sent[static_cast<size_t>(to)];
  launch({stream, [=] {
    ++comm->running;
    if (!comm->aborted) comm->wire->send(to, Wire::kMessage, turn, signature(4, count, type), bytes_at(in, count * width(type)));
  }, {}});
  return launch({stream, [=] {
    if (!comm->aborted) comm->wire->take(to, Wire::kReceipt, turn, 0);
    --comm->running;
  }, [=] { return comm->aborted || comm->wire->has(to, Wire::kReceipt, turn); }, Call::kEnds});
}

int ncclRecv(void* out, size_t count, int type, int from, nccl::Comm comm_, nccl::Stream stream) {
  HostCall lasts(comm_, "Recv", count);
  Comm* comm = as_comm(comm_);
  const uint64_t turn = ++comm->received[static_cast<size_t>(from)];
  launch({stream, [=] { ++comm->running; }, {}});
  return launch({stream, [=] {
    if (!comm->aborted) {
      Bytes data = comm->wire->take(from, Wire::kMessage, turn, signature(4, count, type));
      std::memcpy(out, data.data(), data.size());
      comm->wire->send(from, Wire::kReceipt, turn, 0, {});
    }
    --comm->running;
  }, [=] { return comm->aborted || comm->wire->has(from, Wire::kMessage, turn); }, Call::kReceives});
}

int ncclGroupStart() {
  ++group_depth;
  return 0;
}

int ncclGroupEnd() {
  if (group_depth == 0) return kInvalidUsage;
  if (--group_depth > 0) return 0;
  std::set<CUstream_st*> launched;
  for (auto phase : {Call::kBegins, Call::kReceives, Call::kEnds})
    for (Call& call : grouped)
      if (call.phase == phase) enqueue(call.stream, std::move(call.run), std::move(call.ready), launched.insert(call.stream).second);
  grouped.clear();
  if (!aborting.empty()) abort_all(std::exchange(aborting, {}));
  return 0;
}

}  // extern "C"
