// How the ranks of a group get a communicator: the first makes an id, the host's collectives carry it to the others.
#include <cuda_runtime_api.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "comm/nccl_collectives.h"
#include "comm/single_device.h"

namespace rz::comm {
namespace {

// The call blocks until all ranks have made it, so it has a thread of its own: the caller notices when one of them dies, and
// gives up. The thread may live on then, in the call, longer than the group and the device: what it uses is its own.
struct Connecting {
  enum State { kRunning, kDone, kGivenUp };
  std::atomic<State> state{kRunning};
  nccl::Comm comm = nullptr;
  int result = 1;

  // Whoever is second to say so ends the communicator that nobody wants.
  void change(State to) {
    const State before = state.exchange(to, std::memory_order_acq_rel);
    if (before != kRunning && result == 0) nccl_api().CommAbort(comm);
  }
};

void run(Connecting& connecting, const nccl::UniqueId& id, int rank, int size, int device) {
  if (cudaSetDevice(device) == cudaSuccess && connecting.state.load() == Connecting::kRunning)
    connecting.result = nccl_api().CommInitRank(&connecting.comm, size, id, rank);
  connecting.change(Connecting::kDone);
}

nccl::Comm connect(ProcessGroup& group, JobState& state, const nccl::UniqueId& id, int device) {
  auto connecting = std::make_shared<Connecting>();
  const int rank = group.rank(), size = group.size();
  std::thread([connecting, id, rank, size, device] { run(*connecting, id, rank, size, device); }).detach();
  Doing doing{"connecting devices", 0, group.name().c_str()};
  try {
    wait_for(state, doing, -1, [&] { return connecting->state.load(std::memory_order_acquire) == Connecting::kDone; },
             [] { std::this_thread::sleep_for(std::chrono::milliseconds(2)); });
  } catch (...) {
    connecting->change(Connecting::kGivenUp);
    throw;
  }
  if (connecting->result != 0) {
    const Nccl& api = nccl_api();
    fail("ERR_NCCL", "group ", group.name(), " could not connect its devices on rank ", rank, ": ", api.GetErrorString(connecting->result),
         api.GetLastError ? std::string("; ") + api.GetLastError(nullptr) : "");
  }
  return connecting->comm;
}

}  // namespace

std::unique_ptr<DeviceCollectives> connect_devices(ProcessGroup& group, std::shared_ptr<JobState> state, Stream* host, Stream* device) {
  if (group.size() == 1) return std::make_unique<SingleDevice>();
  const Nccl& api = nccl_api();
  // One rank without NCCL is everybody's error, before anyone waits for it.
  const std::string missing = api.report.usable() ? "" : api.report.explain();
  std::string first;
  for (int r = 0; const std::string& theirs : group.all_gather_bytes(missing, host)) {
    if (!theirs.empty() && first.empty()) first = "rank " + std::to_string(group.ranks()[static_cast<size_t>(r)]) + ": " + theirs;
    ++r;
  }
  if (!first.empty()) fail("ERR_CUDA_UNAVAILABLE", "devices of several ranks need NCCL. ", first);
  nccl::UniqueId id{};
  std::string bytes;
  if (group.rank() == 0 && api.GetUniqueId(&id) == 0) bytes.assign(id.bytes, sizeof id.bytes);
  bytes = group.broadcast_bytes(bytes, 0, host);
  if (bytes.size() != sizeof id.bytes) fail("ERR_NCCL", "rank ", group.ranks()[0], " could not make an id for group ", group.name());
  std::memcpy(id.bytes, bytes.data(), sizeof id.bytes);
  const cuda::Context& context = static_cast<cuda::CudaStream*>(device)->context();
  context.await_host();  // the call may wait for the device
  nccl::Comm comm = connect(group, *state, id, context.device());
  return std::make_unique<NcclCollectives>(group.name(), group.rank(), group.size(), comm, NcclWatch::of(std::move(state)));
}

}  // namespace rz::comm
