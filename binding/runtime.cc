// Streams, events, threads and memory counters.
#include "binding/addon.h"
#include "cpu/threads.h"

namespace rz::binding {
namespace {

napi_value info(Args& a) {
  Napi::Object out = Napi::Object::New(a.env());
  out.Set("version", "0.1.0");
  out.Set("isa", cpu::isa_name());
  out.Set("dnnl", cpu::dnnl_version());
  out.Set("threads", cpu::num_threads());
  out.Set("cuda", false);
  return out;
}

napi_value set_num_threads(Args& a) {
  cpu::set_num_threads(static_cast<int>(a.integer(0)));
  return a.undefined();
}

napi_value stream_create(Args& a) { return a.from(static_cast<double>(a.runtime().create_stream(a.string(0))->index())); }

napi_value stream_set_current(Args& a) {
  int previous = a.state().current->index();
  a.state().current = a.runtime().stream(static_cast<int>(a.integer(0)));
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

napi_value memory_stats(Args& a) {
  MemoryStats stats = a.runtime().allocator().stats();
  constexpr const char* kinds[] = {"other", "parameter", "gradient", "optimizer", "activation", "unshard", "staging"};
  Napi::Env env(a.env());
  Napi::Object out = Napi::Object::New(env), current = Napi::Object::New(env), peak = Napi::Object::New(env);
  for (int i = 0; i < kMemoryKinds; ++i) {
    current.Set(kinds[i], static_cast<double>(stats.current[static_cast<size_t>(i)]));
    peak.Set(kinds[i], static_cast<double>(stats.peak[static_cast<size_t>(i)]));
  }
  out.Set("current", current);
  out.Set("peak", peak);
  out.Set("total", static_cast<double>(stats.total));
  out.Set("totalPeak", static_cast<double>(stats.total_peak));
  out.Set("reserved", static_cast<double>(stats.reserved));
  out.Set("liveHandles", static_cast<double>(a.state().tensors.live()));
  return out;
}

napi_value memory_reset_peak(Args& a) {
  a.runtime().allocator().reset_peak();
  return a.undefined();
}

napi_value memory_trim(Args& a) {
  a.runtime().synchronize_all();
  a.runtime().allocator().trim();
  return a.undefined();
}

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
}

}  // namespace rz::binding
