// Streams, events, threads and memory counters.
#include "binding/addon.h"
#include "comm/hosts/engine_library.h"
#include "comm/nccl_api.h"
#include "cpu/threads.h"

namespace rz::binding {
namespace {

napi_value info(Args& a) {
  Napi::Object out = Napi::Object::New(a.env());
  out.Set("version", "0.1.0");
  out.Set("isa", cpu::isa_name());
  out.Set("dnnl", cpu::dnnl_version());
  out.Set("threads", cpu::num_threads());
  out.Set("cuda", cuda::is_built());
  return out;
}

napi_value set_num_threads(Args& a) {
  cpu::set_num_threads(static_cast<int>(a.integer(0)));
  return a.undefined();
}

// (name, device)
napi_value stream_create(Args& a) { return a.from(static_cast<double>(a.runtime().create_stream(a.string(0), a.device(1))->index())); }

// The current stream of the device that `stream` belongs to; returns the previous one.
napi_value stream_set_current(Args& a) {
  Stream* stream = a.runtime().stream(static_cast<int>(a.integer(0)));
  int previous = a.state().current_on(stream->device())->index();
  a.state().current[static_cast<int>(stream->device())] = stream;
  return a.from(static_cast<double>(previous));
}

napi_value stream_synchronize(Args& a) {
  a.runtime().stream(static_cast<int>(a.integer(0)))->synchronize();
  return a.undefined();
}

napi_value event_record(Args& a) {
  return a.from(a.state().events.insert(a.runtime().stream(static_cast<int>(a.integer(0)))->record()));
}

napi_value event_release(Args& a) { return a.from(a.state().events.release(a.number(0))); }

napi_value event_query(Args& a) {
  Event event = a.state().events.at(a.number(0));
  return a.from(event.stream->query(event));
}

napi_value event_synchronize(Args& a) {
  Event event = a.state().events.at(a.number(0));
  event.stream->synchronize(event);
  return a.undefined();
}

// A promise that settles when the event has completed.
napi_value event_wait_async(Args& a) {
  Event event = a.state().events.at(a.number(0));
  return run_async(
      a.env(), [event] { event.stream->synchronize(event); }, [](Napi::Env env) { return env.Undefined(); });
}

napi_value stream_wait_event(Args& a) {
  a.runtime().stream(static_cast<int>(a.integer(0)))->wait(a.state().events.at(a.number(1)));
  return a.undefined();
}

CachingAllocator& allocator_of(Args& a, Device device) {
  if (device == Device::Cpu) return a.runtime().allocator();
  return a.runtime().cuda().allocator();
}

// (device)
napi_value memory_stats(Args& a) {
  MemoryStats stats = allocator_of(a, a.device(0)).stats();
  Napi::Env env(a.env());
  Napi::Object out = Napi::Object::New(env), current = Napi::Object::New(env), peak = Napi::Object::New(env);
  for (int i = 0; i < kMemoryKinds; ++i) {
    const char* kind = name_of(static_cast<MemoryKind>(i));
    current.Set(kind, static_cast<double>(stats.current[static_cast<size_t>(i)]));
    peak.Set(kind, static_cast<double>(stats.peak[static_cast<size_t>(i)]));
  }
  out.Set("current", current);
  out.Set("peak", peak);
  out.Set("total", static_cast<double>(stats.total));
  out.Set("totalPeak", static_cast<double>(stats.total_peak));
  out.Set("reserved", static_cast<double>(stats.reserved));
  out.Set("reservedPeak", static_cast<double>(stats.reserved_peak));
  out.Set("liveHandles", static_cast<double>(a.state().tensors.live()));
  return out;
}

napi_value memory_reset_peak(Args& a) {
  a.runtime().allocator().reset_peak();
  if (a.runtime().has_cuda()) a.runtime().cuda().allocator().reset_peak();
  return a.undefined();
}

napi_value memory_trim(Args& a) {
  a.runtime().synchronize_all();
  a.runtime().allocator().trim();
  if (a.runtime().has_cuda()) a.runtime().cuda().allocator().trim();
  return a.undefined();
}

// (bytes): the most that this process takes from the device; 0 for no limit
napi_value cuda_set_memory_limit(Args& a) {
  int64_t bytes = a.integer(0);
  if (bytes < 0) fail("ERR_ARGUMENT", "a memory limit cannot be ", bytes, " bytes");
  a.runtime().cuda().set_memory_limit(static_cast<size_t>(bytes));
  return a.undefined();
}

// (kernels); returns the previous ones
napi_value cuda_set_attention(Args& a) {
  AttentionKernels& kernels = a.runtime().cuda().kernels().attention;
  const AttentionKernels previous = kernels;
  kernels = attention_kernels(a.string(0));
  return a.from(std::string(name_of(previous)));
}

// (narrow); returns what it was
napi_value cuda_set_narrow_logits(Args& a) {
  bool& narrow = a.runtime().cuda().kernels().narrow_logits;
  const bool previous = narrow;
  narrow = a.boolean(0);
  return a.from(previous);
}

// (proposal); returns the previous one
napi_value cuda_set_gemm_proposal(Args& a) {
  int& proposal = a.runtime().cuda().kernels().gemm_proposal;
  const int64_t wanted = a.integer(0);
  if (wanted < 0 || wanted >= KernelChoices::kMostProposals)
    fail("ERR_ARGUMENT", "the proposal of cuBLASLt is 0 to ", KernelChoices::kMostProposals - 1, " but got ", wanted);
  const int previous = proposal;
  proposal = static_cast<int>(wanted);
  return a.from(static_cast<double>(previous));
}

// (trials); returns what they were
napi_value cuda_set_gemm_trials(Args& a) {
  int& trials = a.runtime().cuda().kernels().gemm_trials;
  const int64_t wanted = a.integer(0);
  if (wanted < 1 || wanted > KernelChoices::kMostProposals)
    fail("ERR_ARGUMENT", "1 to ", KernelChoices::kMostProposals, " proposals of cuBLASLt may be timed but not ", wanted);
  const int previous = trials;
  trials = static_cast<int>(wanted);
  return a.from(static_cast<double>(previous));
}

Stream& cuda_stream(Args& a, size_t i) {
  Stream* stream = a.runtime().stream(static_cast<int>(a.integer(i)));
  if (stream->device() != Device::Cuda) fail("ERR_DEVICE", "stream ", stream->name(), " is on cpu; timestamps are of streams on cuda");
  return *stream;
}

// (stream): a place in it, counted from 0
napi_value cuda_timestamp(Args& a) { return a.from(static_cast<double>(a.runtime().cuda().timestamp(cuda_stream(a, 0)))); }

// (from, to)
napi_value cuda_milliseconds(Args& a) {
  return a.from(a.runtime().cuda().milliseconds(static_cast<int>(a.integer(0)), static_cast<int>(a.integer(1))));
}

// (bytes, to_device)
napi_value cuda_pinned_copy(Args& a) {
  int64_t bytes = a.integer(0);
  if (bytes < 1) fail("ERR_ARGUMENT", "a copy has 1 byte or more but got ", bytes);
  return a.from(a.runtime().cuda().pinned_copy_milliseconds(static_cast<size_t>(bytes), a.boolean(1), *a.runtime().compute(Device::Cuda)));
}

napi_value cuda_forget_timestamps(Args& a) {
  a.runtime().cuda().forget_timestamps();
  return a.undefined();
}

// (device, index): of the compute stream; `index` says which of several devices, before it is opened
napi_value compute_stream(Args& a) {
  const Device device = a.device(0);
  if (device == Device::Cuda && !a.missing(1)) a.runtime().choose_cuda(static_cast<int>(a.integer(1)));
  return a.from(static_cast<double>(a.runtime().compute(device)->index()));
}

Napi::Object library_info(Napi::Env env, const LibraryReport& library) {
  Napi::Object out = Napi::Object::New(env);
  out.Set("name", library.name);
  out.Set("path", library.path);
  out.Set("version", library.version);
  out.Set("problem", library.problem);
  Napi::Array tried = Napi::Array::New(env);
  for (const std::string& line : library.tried) tried.Set(tried.Length(), line);
  out.Set("tried", tried);
  out.Set("remedy", library.remedy);
  return out;
}

// What there is of CUDA and NCCL. Loads their libraries, and does not use the device.
napi_value accelerator_info(Args& a) {
  cuda::Description d = cuda::describe();
  Napi::Env env(a.env());
  Napi::Object out = Napi::Object::New(env);
  Napi::Array devices = Napi::Array::New(env), libraries = Napi::Array::New(env);
  for (const cuda::DeviceInfo& device : d.devices) {
    Napi::Object info = Napi::Object::New(env);
    info.Set("name", device.name);
    info.Set("id", device.id);
    info.Set("capability", std::to_string(device.major) + "." + std::to_string(device.minor));
    info.Set("multiprocessors", device.multiprocessors);
    info.Set("memory", static_cast<double>(device.memory));
    info.Set("problem", device.problem);
    devices.Set(devices.Length(), info);
  }
  d.libraries.push_back(comm::nccl_api().report);
  for (const LibraryReport& library : d.libraries) libraries.Set(libraries.Length(), library_info(env, library));
  out.Set("built", d.built);
  out.Set("unavailable", d.unavailable);
  out.Set("runtime", d.runtime);
  out.Set("driver", d.driver);
  out.Set("architectures", d.architectures);
  out.Set("devices", devices);
  out.Set("libraries", libraries);
  return out;
}

// The module that connects hosts. Loads it.
napi_value engine_info(Args& a) { return library_info(a.env(), comm::engine_report()); }

}  // namespace

void register_runtime(Napi::Object exports) {
  define<info>(exports, "info");
  define<set_num_threads>(exports, "setNumThreads");
  define<stream_create>(exports, "streamCreate");
  define<stream_set_current>(exports, "streamSetCurrent");
  define<stream_synchronize>(exports, "streamSynchronize");
  define<stream_wait_event>(exports, "streamWaitEvent");
  define<event_record>(exports, "eventRecord");
  define<event_release>(exports, "eventRelease");
  define<event_query>(exports, "eventQuery");
  define<event_synchronize>(exports, "eventSynchronize");
  define<event_wait_async>(exports, "eventWaitAsync");
  define<memory_stats>(exports, "memoryStats");
  define<memory_reset_peak>(exports, "memoryResetPeak");
  define<memory_trim>(exports, "memoryTrim");
  define<cuda_set_memory_limit>(exports, "cudaSetMemoryLimit");
  define<cuda_set_attention>(exports, "cudaSetAttention");
  define<cuda_set_narrow_logits>(exports, "cudaSetNarrowLogits");
  define<cuda_set_gemm_proposal>(exports, "cudaSetGemmProposal");
  define<cuda_set_gemm_trials>(exports, "cudaSetGemmTrials");
  define<cuda_timestamp>(exports, "cudaTimestamp");
  define<cuda_milliseconds>(exports, "cudaMilliseconds");
  define<cuda_pinned_copy>(exports, "cudaPinnedCopy");
  define<cuda_forget_timestamps>(exports, "cudaForgetTimestamps");
  define<compute_stream>(exports, "computeStream");
  define<accelerator_info>(exports, "acceleratorInfo");
  define<engine_info>(exports, "engineInfo");
}

}  // namespace rz::binding
