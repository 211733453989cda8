// The job this process is a rank of, its process groups, and their collectives. Groups are handles; a collective
// enqueues on the current stream. Only joining, splitting, leaving and the calls on bytes wait.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <numeric>

#include "binding/addon.h"
#include "comm/death.h"
#include "comm/dry_group.h"
#include "comm/hosts/link.h"
#include "comm/job.h"
#include "comm/local_group.h"
#include "core/progress.h"
#include "cpu/threads.h"

namespace rz::binding {
namespace {

using Group = std::shared_ptr<comm::ProcessGroup>;

struct CommState {
  std::shared_ptr<comm::Job> job;
  std::shared_ptr<comm::WireCounts> wire;  // of a dry run
  HandleTable<Group, HandleKind::Group> groups;
  // Tasks still queued fail at once, since the job is over for this process.
  ~CommState() {
    if (job) job->leave();
  }
};

CommState& comm_state(Args& a) { return a.state().concept_state<CommState>("comm"); }
Group& group(Args& a) { return comm_state(a).groups.at(a.number(0)); }

TensorRef optional_tensor(Args& a, size_t i) {
  if (i >= a.count() || a.missing(i) || a.number(i) == 0) return {};
  return a.tensor(i);
}

// A collective runs on the current stream of its operands' device.
Stream* stream_of(Args& a, const TensorRef& tensor) {
  const Device device = tensor.storage->device();
  return device == Device::Cpu ? a.stream() : a.state().current_on(device);
}

double insert(CommState& state, Group group, Runtime& runtime) {
  group->coordinate_on(runtime.compute());
  return state.groups.insert(std::move(group));
}

comm::ReduceOp reduce_op(Args& a, size_t i) {
  int64_t op = a.integer(i);
  if (op < 0 || op > 3) fail("ERR_ARGUMENT", "reduce operation ", op, " does not exist");
  return static_cast<comm::ReduceOp>(op);
}

// A secret's value, or the file that holds it: read again on every attempt to connect, since rank 0 may yet write it.
std::function<std::string()> secret_source(std::string secret, std::string file) {
  if (file.empty()) return [secret] { return secret; };
  return [file] {
    std::string text;
    std::ifstream(file) >> text;
    return text;
  };
}

// Ranks that hold the same values must compute the same bits: with the instruction sets that all of their processors have.
void compute_alike(const comm::Job& job) {
  const auto& ranks = job.hosts();
  auto least = std::min_element(ranks.begin(), ranks.end(), [](auto& a, auto& b) { return a.level < b.level; });
  if (std::all_of(ranks.begin(), ranks.end(), [&](auto& rank) { return rank.level == ranks[0].level && rank.features == ranks[0].features; })) return;
  if (!cpu::limit_isa(least->level))
    fail("ERR_BACKEND", "the processors of the ranks differ, and this rank has computed already: call initProcessGroup first");
  const auto rank = least - ranks.begin();
  if (job.rank() == 0)
    std::fprintf(stderr, "rankzero: the processors differ: all ranks compute with %s, as rank %d on %s does, so that their bits are the same\n", cpu::isa_name(),
                 static_cast<int>(rank), least->hostname.c_str());
}

// ({rank, size, host, port, secret, secretFile, loopback, timeout, serves, address, version, hostName, heartbeatTimeout}) → promise
// of the world's handle
napi_value comm_init(Args& a) {
  Napi::Object o = a.value(0).As<Napi::Object>();
  CommState& state = comm_state(a);
  if (a.runtime().is_dry()) fail("ERR_DRY_RUN", "a dry run has no other ranks to join");
  if (state.job && !state.job->left()) fail("ERR_GROUP", "this process has joined a job already");
  auto number = [&](const char* key) { return o.Get(key).As<Napi::Number>().DoubleValue(); };
  auto text = [&](const char* key) { return o.Get(key).As<Napi::String>().Utf8Value(); };
  comm::JobOptions options;
  options.rank = static_cast<int>(number("rank"));
  options.size = static_cast<int>(number("size"));
  options.store.host = text("host");
  options.store.port = static_cast<int>(number("port"));
  options.store.secret = secret_source(text("secret"), text("secretFile"));
  options.loopback = o.Get("loopback").As<Napi::Boolean>().Value();
  options.timeout_seconds = number("timeout");
  options.serves = o.Get("serves").As<Napi::Boolean>().Value();
  options.address = text("address");
  options.store.version = text("version");
  options.store.host_name = text("hostName");
  options.store.silence = number("heartbeatTimeout");
  options.level = cpu::isa_level();
  options.features = cpu::gemm_features();
  struct Joined {
    std::shared_ptr<comm::Job> job;
    Group world;
  };
  auto joined = std::make_shared<Joined>();
  Runtime* runtime = &a.runtime();
  return run_async(
      a.env(),
      [=] {
        joined->job = comm::Job::join(options);
        joined->world = joined->job->world(runtime);
      },
      [&state, joined, runtime](Napi::Env env) -> Napi::Value {
        state.job = joined->job;
        compute_alike(*joined->job);
        return Napi::Number::New(env, insert(state, std::move(joined->world), *runtime));
      });
}

// A world of one: no store, no sockets.
napi_value comm_local(Args& a) {
  Runtime* runtime = &a.runtime();
  auto allocate = [runtime](size_t bytes, Stream* home, MemoryKind kind, bool) { return runtime->allocate(bytes, home, kind); };
  return a.from(insert(comm_state(a), std::make_shared<comm::LocalGroup>("world", 0, allocate), *runtime));
}

// (rank, size, ranks of each host) → the world's handle. Begins the dry run of this process: see Runtime::make_dry.
napi_value dry_run(Args& a) {
  CommState& state = comm_state(a);
  const int64_t rank = a.integer(0), size = a.integer(1), per_host = a.integer(2);
  if (per_host < 1 || size % per_host != 0) fail("ERR_ARGUMENT", size, " ranks are not whole hosts of ", per_host);
  if (size < 1 || size > 1 << 20 || rank < 0 || rank >= size) fail("ERR_ARGUMENT", "there is no rank ", rank, " in a world of ", size);
  if (state.job || state.groups.live() > 0) fail("ERR_DRY_RUN", "a dry run needs a process that has joined nothing yet");
  a.runtime().make_dry();
  state.wire = std::make_shared<comm::WireCounts>();
  std::vector<int> ranks(static_cast<size_t>(size));
  std::iota(ranks.begin(), ranks.end(), 0);
  std::vector<std::string> hosts;
  for (int r : ranks) hosts.push_back(std::to_string(r / per_host));
  comm::HostLayout layout(hosts);
  return a.from(state.groups.insert(
      std::make_shared<comm::DryGroup>("world", std::move(ranks), static_cast<int>(rank), std::move(layout), &a.runtime(), state.wire)));
}

// → {kind: {calls, within, between}}: what this rank would have sent so far, within its host and to others
napi_value dry_wire(Args& a) {
  CommState& state = comm_state(a);
  if (!state.wire) fail("ERR_DRY_RUN", "this is not a dry run");
  constexpr const char* kinds[] = {"broadcast", "scatter", "allReduce", "allGather", "reduceScatter", "allToAll", "send", "barrier"};
  Napi::Object out = Napi::Object::New(a.env());
  for (size_t i = 0; i < comm::kWireKinds; ++i) {
    Napi::Object kind = Napi::Object::New(a.env());
    kind.Set("calls", static_cast<double>(state.wire->calls[i]));
    kind.Set("within", static_cast<double>(state.wire->bytes[i].within));
    kind.Set("between", static_cast<double>(state.wire->bytes[i].between));
    out.Set(kinds[i], kind);
  }
  return out;
}

// Runs what is enqueued, then leaves in good order.
napi_value comm_leave(Args& a) {
  CommState& state = comm_state(a);
  if (!state.job) return a.undefined();
  for (Stream* stream : a.runtime().streams()) {
    try {
      stream->synchronize();
    } catch (const std::exception&) {
      // Reported where its result is read; leaving goes on.
    }
  }
  state.job->leave();
  return a.undefined();
}

napi_value comm_fail(Args& a) {
  if (auto& job = comm_state(a).job) job->fail(a.string(0));
  return a.undefined();
}

napi_value comm_phase(Args& a) {
  progress::set_phase(a.string(0));
  return a.undefined();
}

napi_value comm_add_bytes(Args& a) {
  progress::add_bytes(static_cast<uint64_t>(a.integer(0)));
  return a.undefined();
}

napi_value comm_trim(Args& a) {
  CommState& state = comm_state(a);
  if (!state.job) return a.undefined();
  a.runtime().synchronize_all();
  state.job->pool(&a.runtime())->trim();
  return a.undefined();
}

napi_value comm_stats(Args& a) {
  CommState& state = comm_state(a);
  Napi::Object out = Napi::Object::New(a.env());
  out.Set("cachedBytes", state.job ? static_cast<double>(state.job->pool(&a.runtime())->cached_bytes()) : 0);
  out.Set("mappings", state.job ? static_cast<double>(state.job->exchange().mapped()) : 0);
  out.Set("groups", static_cast<double>(state.groups.live()));
  out.Set("linkBytes", state.job && state.job->link() ? static_cast<double>(state.job->link()->sent()) : 0);
  return out;
}

Napi::Array to_array(Napi::Env env, const std::vector<int>& numbers) {
  Napi::Array out = Napi::Array::New(env, numbers.size());
  for (size_t i = 0; i < numbers.size(); ++i) out.Set(static_cast<uint32_t>(i), numbers[i]);
  return out;
}

napi_value group_info(Args& a) {
  Group& g = group(a);
  Napi::Object out = Napi::Object::New(a.env());
  out.Set("rank", g->rank());
  out.Set("size", g->size());
  out.Set("ranks", to_array(a.env(), g->ranks()));
  out.Set("backend", g->backend());
  out.Set("deviceBackend", g->device_backend());
  out.Set("hosts", g->hosts());
  std::vector<int> host_of;
  for (int r = 0; r < g->size(); ++r) host_of.push_back(g->host_of(r));
  out.Set("hostOf", to_array(a.env(), host_of));
  out.Set("ranksOnHost", to_array(a.env(), g->ranks_on_host()));
  out.Set("canMap", g->can_map());
  out.Set("name", g->name());
  return out;
}

napi_value group_release(Args& a) { return a.from(comm_state(a).groups.release(a.number(0))); }

// (group, ranks of the group) → handle, or 0 for a rank that is not among them
napi_value group_split(Args& a) {
  Napi::Array list = a.value(1).As<Napi::Array>();
  std::vector<int> ranks;
  for (uint32_t i = 0; i < list.Length(); ++i) ranks.push_back(list.Get(i).As<Napi::Number>().Int32Value());
  Group part = group(a)->split(ranks);
  return a.from(part ? insert(comm_state(a), std::move(part), a.runtime()) : 0.0);
}

// (group, numel, dtype, kind, populate) → tensor
napi_value group_allocate(Args& a) {
  int64_t numel = a.integer(1), kind = a.integer(3);
  DType dtype = a.dtype(2);
  if (numel < 0) fail("ERR_SHAPE", "a tensor cannot have ", numel, " elements");
  if (kind < 0 || kind >= kMemoryKinds) fail("ERR_ARGUMENT", "memory kind ", kind, " does not exist");
  auto storage = group(a)->allocate_shared(static_cast<size_t>(numel * size_of(dtype)), a.stream(), static_cast<MemoryKind>(kind), a.boolean(4));
  return a.from(a.state().tensors.insert({std::move(storage), 0, numel, dtype}));
}

// (tensor, present): makes the pages of shared memory now, in one go, or takes them out of this process's map (their values
// stay). Nothing for other memory.
napi_value tensor_pages(Args& a) {
  TensorRef t = a.host_tensor(0);
  bool present = a.boolean(1);
  if (t.storage->backing() < 0) return a.undefined();
  t.storage->used_on(a.stream());
  enqueue(a.stream(), "tensorPages", [t, present] { comm::set_pages(static_cast<std::byte*>(t.data()), t.bytes(), present); });
  return a.undefined();
}

// (group, elements, dtype, kind) → handle of memory that all ranks of the group map
napi_value group_allocate_whole(Args& a) {
  int64_t numel = a.integer(1), kind = a.integer(3);
  DType dtype = a.dtype(2);
  if (numel < 0) fail("ERR_SHAPE", "a tensor cannot have ", numel, " elements");
  if (kind < 0 || kind >= kMemoryKinds) fail("ERR_ARGUMENT", "memory kind ", kind, " does not exist");
  auto storage = group(a)->allocate_whole(static_cast<size_t>(numel * size_of(dtype)), a.stream(), static_cast<MemoryKind>(kind));
  return a.from(a.state().tensors.insert({std::move(storage), 0, numel, dtype}));
}

napi_value group_broadcast(Args& a) {
  group(a)->broadcast(a.tensor(1), static_cast<int>(a.integer(2)), stream_of(a, a.tensor(1)));
  return a.undefined();
}

napi_value group_scatter(Args& a) {
  group(a)->scatter(a.tensor(1), optional_tensor(a, 2), static_cast<int>(a.integer(3)), stream_of(a, a.tensor(1)));
  return a.undefined();
}

napi_value group_all_reduce(Args& a) {
  group(a)->all_reduce(a.tensor(1), reduce_op(a, 2), stream_of(a, a.tensor(1)));
  return a.undefined();
}

napi_value group_all_gather(Args& a) {
  group(a)->all_gather(a.tensor(1), a.tensor(2), stream_of(a, a.tensor(1)));
  return a.undefined();
}

napi_value group_reduce_scatter(Args& a) {
  group(a)->reduce_scatter(a.tensor(1), a.tensor(2), reduce_op(a, 3), a.boolean(4), stream_of(a, a.tensor(1)));
  return a.undefined();
}

// (group, output, input, elements for each rank, elements of each rank)
napi_value group_all_to_all(Args& a) {
  group(a)->all_to_all(a.tensor(1), a.tensor(2), a.integers(3), a.integers(4), stream_of(a, a.tensor(1)));
  return a.undefined();
}

napi_value group_send(Args& a) {
  group(a)->send(a.tensor(1), static_cast<int>(a.integer(2)), stream_of(a, a.tensor(1)));
  return a.undefined();
}

napi_value group_recv(Args& a) {
  group(a)->recv(a.tensor(1), static_cast<int>(a.integer(2)), stream_of(a, a.tensor(1)));
  return a.undefined();
}

napi_value group_barrier(Args& a) {
  Group g = group(a);
  g->barrier(a.stream());
  a.stream()->synchronize();
  return a.undefined();
}

// Enqueues; the host does not wait.
napi_value group_enqueue_barrier(Args& a) {
  group(a)->barrier(a.stream());
  return a.undefined();
}

Napi::Value to_bytes(Napi::Env env, const std::string& bytes) {
  Napi::Uint8Array out = Napi::Uint8Array::New(env, bytes.size());
  if (!bytes.empty()) std::memcpy(out.Data(), bytes.data(), bytes.size());
  return out;
}

std::string from_bytes(Args& a, size_t i) {
  auto [data, size] = a.bytes(i);
  return {reinterpret_cast<const char*>(data), size};
}

napi_value group_all_gather_bytes(Args& a) {
  auto parts = group(a)->all_gather_bytes(from_bytes(a, 1), a.stream());
  Napi::Array out = Napi::Array::New(a.env(), parts.size());
  for (size_t r = 0; r < parts.size(); ++r) out.Set(static_cast<uint32_t>(r), to_bytes(a.env(), parts[r]));
  return out;
}

// (group, bytes or undefined, root)
napi_value group_broadcast_bytes(Args& a) {
  std::string bytes = a.missing(1) ? "" : from_bytes(a, 1);
  return to_bytes(a.env(), group(a)->broadcast_bytes(bytes, static_cast<int>(a.integer(2)), a.stream()));
}

}  // namespace

void register_comm(Napi::Object exports) {
  comm::die_with_launcher();
  define<comm_init>(exports, "commInit");
  define<comm_local>(exports, "commLocal");
  define<dry_run>(exports, "dryRun");
  define<dry_wire>(exports, "dryWire");
  define<comm_leave>(exports, "commLeave");
  define<comm_fail>(exports, "commFail");
  define<comm_phase>(exports, "commPhase");
  define<comm_add_bytes>(exports, "commAddBytes");
  define<comm_trim>(exports, "commTrim");
  define<comm_stats>(exports, "commStats");
  define<group_info>(exports, "groupInfo");
  define<group_release>(exports, "groupRelease");
  define<group_split>(exports, "groupSplit");
  define<group_allocate>(exports, "groupAllocate");
  define<tensor_pages>(exports, "tensorPages");
  define<group_allocate_whole>(exports, "groupAllocateWhole");
  define<group_broadcast>(exports, "groupBroadcast");
  define<group_scatter>(exports, "groupScatter");
  define<group_all_reduce>(exports, "groupAllReduce");
  define<group_all_gather>(exports, "groupAllGather");
  define<group_reduce_scatter>(exports, "groupReduceScatter");
  define<group_all_to_all>(exports, "groupAllToAll");
  define<group_send>(exports, "groupSend");
  define<group_recv>(exports, "groupRecv");
  define<group_barrier>(exports, "groupBarrier");
  define<group_enqueue_barrier>(exports, "groupEnqueueBarrier");
  define<group_all_gather_bytes>(exports, "groupAllGatherBytes");
  define<group_broadcast_bytes>(exports, "groupBroadcastBytes");
}

}  // namespace rz::binding
