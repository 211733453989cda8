// Recording, and what was recorded as arrays of numbers: their columns are those of src/profile/recording.ts.
#include "binding/addon.h"

namespace rz::binding {
namespace {

// (most events of each stream)
napi_value profile_start(Args& a) {
  int64_t capacity = a.integer(0);
  if (capacity < 1) fail("ERR_ARGUMENT", "a profile of at most ", capacity, " events has none");
  a.runtime().profiler().start(static_cast<size_t>(capacity));
  for (Stream* stream : a.runtime().streams()) stream->clear_log();
  return a.undefined();
}

// Tasks that are enqueued from now on are not recorded; those that were still run.
napi_value profile_stop(Args& a) {
  a.runtime().profiler().stop();
  return a.undefined();
}

// (kind, label or '') → number of the span
napi_value profile_begin(Args& a) { return a.from(static_cast<double>(a.runtime().profiler().begin(a.string(0), a.string(1)))); }

napi_value profile_end(Args& a) {
  a.runtime().profiler().end(static_cast<int32_t>(a.integer(0)));
  return a.undefined();
}

// → promise: everything enqueued so far has run, or was skipped after a failure
napi_value profile_drain(Args& a) {
  struct Position {
    Stream* stream;
    Event event;
  };
  std::vector<Position> positions;
  for (Stream* stream : a.runtime().streams()) positions.push_back({stream, stream->record()});
  return run_async(
      a.env(),
      [positions] {
        for (const auto& [stream, event] : positions) stream->drain(event);
      },
      [](Napi::Env env) { return env.Undefined(); });
}

// Numbers that refer to texts by their place in a list.
class Names {
 public:
  explicit Names(std::vector<std::string> names) : names_(std::move(names)) {}
  double operator()(const char* name) {
    auto [entry, is_new] = index_.try_emplace(name, static_cast<double>(names_.size()));
    if (is_new) names_.emplace_back(name);
    return entry->second;
  }
  const std::vector<std::string>& all() const { return names_; }

 private:
  std::vector<std::string> names_;
  std::unordered_map<const char*, double> index_;  // literals
};

Napi::Float64Array numbers(Napi::Env env, const std::vector<double>& values) {
  Napi::Float64Array out = Napi::Float64Array::New(env, values.size());
  std::copy(values.begin(), values.end(), out.Data());
  return out;
}

// Blocks until the streams are past what was recorded; the records are gone afterwards.
napi_value profile_take(Args& a) {
  Runtime& runtime = a.runtime();
  Profiler& profiler = runtime.profiler();
  if (profiler.is_recording()) fail("ERR_PROFILE", "the profile is still being recorded");
  Napi::Env env(a.env());
  Names names(profiler.names());
  std::vector<double> tasks, spans;
  const int64_t zero = profiler.started();
  auto since = [zero](int64_t time) { return static_cast<double>(time - zero); };
  Napi::Array streams = Napi::Array::New(env);
  for (Stream* stream : runtime.streams()) stream->drain(stream->record());
  for (Stream* stream : runtime.streams()) {
    stream->complete_log();
    const TaskLog& log = stream->log();
    Napi::Object info = Napi::Object::New(env);
    info.Set("name", stream->name());
    info.Set("dropped", static_cast<double>(log.dropped()));
    streams.Set(static_cast<uint32_t>(stream->index()), info);
    for (size_t i = 0; i < log.size(); ++i) {
      const TaskRecord& t = log.at(i);
      if (t.end == 0) continue;
      tasks.insert(tasks.end(), {static_cast<double>(stream->index()), names(t.op), since(t.enqueued), since(t.start), since(t.end),
                                 static_cast<double>(t.waited), static_cast<double>(t.span), static_cast<double>(t.awaits), t.work.flops,
                                 t.work.bytes, names(t.work.axes), static_cast<double>(t.work.dtype)});
      for (int64_t size : t.work.sizes) tasks.push_back(static_cast<double>(size));
    }
  }
  for (Stream* stream : runtime.streams()) stream->clear_log();
  for (const Span& s : profiler.spans()) {
    if (s.end == 0) continue;
    spans.insert(spans.end(), {static_cast<double>(&s - profiler.spans().data()), static_cast<double>(s.kind), static_cast<double>(s.label),
                               since(s.start), since(s.end)});
    spans.insert(spans.end(), s.before.begin(), s.before.end());
    spans.insert(spans.end(), s.after.begin(), s.after.end());
  }
  Napi::Array texts = Napi::Array::New(env);
  for (const std::string& name : names.all()) texts.Set(texts.Length(), name);
  Napi::Object out = Napi::Object::New(env);
  out.Set("startedAt", static_cast<double>(zero));
  out.Set("names", texts);
  out.Set("streams", streams);
  out.Set("tasks", numbers(env, tasks));
  out.Set("spans", numbers(env, spans));
  out.Set("droppedSpans", static_cast<double>(profiler.dropped_spans()));
  profiler.clear();
  return out;
}

// Forgets what was recorded, without waiting for it.
napi_value profile_discard(Args& a) {
  a.runtime().profiler().stop();
  a.runtime().profiler().clear();
  for (Stream* stream : a.runtime().streams()) stream->clear_log();
  return a.undefined();
}

}  // namespace

void register_profile(Napi::Object exports) {
  define<profile_start>(exports, "profileStart");
  define<profile_stop>(exports, "profileStop");
  define<profile_begin>(exports, "profileBegin");
  define<profile_end>(exports, "profileEnd");
  define<profile_drain>(exports, "profileDrain");
  define<profile_take>(exports, "profileTake");
  define<profile_discard>(exports, "profileDiscard");
}

}  // namespace rz::binding
