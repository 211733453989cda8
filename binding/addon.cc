// Entry point: one AddonState per environment, destroyed with it.
#include "binding/addon.h"

#include <cmath>

namespace rz::binding {

Args::Args(napi_env env, napi_callback_info info) : env_(env) {
  void* data = nullptr;
  napi_get_cb_info(env, info, &count_, values_, nullptr, &data);
  name_ = static_cast<const char*>(data);
  napi_get_instance_data(env, &data);
  state_ = static_cast<AddonState*>(data);
}

namespace {

[[noreturn]] void bad_argument(size_t i, const char* wanted) {
  fail("ERR_ARGUMENT", "argument ", i + 1, " of a native call must be ", wanted);
}

}  // namespace

bool Args::missing(size_t i) const {
  napi_valuetype type;
  napi_typeof(env_, values_[i], &type);
  return type == napi_undefined || type == napi_null;
}

double Args::number(size_t i) const {
  double value;
  if (napi_get_value_double(env_, values_[i], &value) != napi_ok) bad_argument(i, "a number");
  return value;
}

int64_t Args::integer(size_t i) const {
  double value = number(i);
  if (!(std::abs(value) <= 0x1p53) || value != std::floor(value)) bad_argument(i, "a whole number");
  return static_cast<int64_t>(value);
}

uint64_t Args::u64(size_t i) const {
  uint64_t value;
  bool lossless;
  if (napi_get_value_bigint_uint64(env_, values_[i], &value, &lossless) != napi_ok) bad_argument(i, "a bigint");
  return value;
}

bool Args::boolean(size_t i) const {
  bool value;
  if (napi_get_value_bool(env_, values_[i], &value) != napi_ok) bad_argument(i, "a boolean");
  return value;
}

std::string Args::string(size_t i) const {
  size_t length = 0;
  if (napi_get_value_string_utf8(env_, values_[i], nullptr, 0, &length) != napi_ok) bad_argument(i, "a string");
  std::string text(length, '\0');
  napi_get_value_string_utf8(env_, values_[i], text.data(), length + 1, &length);
  return text;
}

DType Args::dtype(size_t i) const {
  int64_t value = integer(i);
  if (value < 0 || value > static_cast<int64_t>(DType::UInt8)) bad_argument(i, "a dtype");
  return static_cast<DType>(value);
}

Device Args::device(size_t i) const {
  if (i >= count_ || missing(i)) return Device::Cpu;
  int64_t value = integer(i);
  if (value < 0 || value > static_cast<int64_t>(Device::Cuda)) bad_argument(i, "a device");
  return static_cast<Device>(value);
}

std::pair<std::byte*, size_t> Args::bytes(size_t i) const {
  void* data = nullptr;
  size_t length = 0, offset = 0;
  bool is_typed = false, is_buffer = false;
  napi_value buffer;
  napi_is_typedarray(env_, values_[i], &is_typed);
  if (is_typed) {
    napi_typedarray_type type;
    napi_get_typedarray_info(env_, values_[i], &type, &length, &data, &buffer, &offset);
    constexpr size_t widths[] = {1, 1, 1, 2, 2, 4, 4, 4, 8, 8, 8};
    return {static_cast<std::byte*>(data), length * widths[type]};
  }
  napi_is_arraybuffer(env_, values_[i], &is_buffer);
  if (!is_buffer) bad_argument(i, "a typed array or ArrayBuffer");
  napi_get_arraybuffer_info(env_, values_[i], &data, &length);
  return {static_cast<std::byte*>(data), length};
}

TensorRef& Args::tensor(size_t i) const { return state_->tensors.at(number(i)); }

TensorRef& Args::host_tensor(size_t i) const {
  TensorRef& t = tensor(i);
  if (t.storage->device() != Device::Cpu)
    fail("ERR_DEVICE", "[", name_, "] argument ", i + 1, " must be on device cpu but is on ", name_of(t.storage->device()));
  return t;
}

View Args::view_of(size_t i, double handle) const {
  TensorRef& t = state_->tensors.at(handle);
  Device device = t.storage->device();
  if (!op_stream_) op_stream_ = state_->current_on(device);
  else if (op_stream_->device() != device)
    fail("ERR_DEVICE", "[", name_, "] the operands must be on one device, but argument ", i + 1, " is on ", name_of(device),
         " and one before it on ", name_of(op_stream_->device()), "; move one of them with to()");
  t.storage->used_on(op_stream_);
  return {t.data(), t.dtype, t.numel};
}

View Args::view(size_t i) const { return view_of(i, number(i)); }

View Args::optional(size_t i) const {
  if (i >= count_) return {};
  double handle = 0;
  if (napi_get_value_double(env_, values_[i], &handle) != napi_ok || handle == 0) return {};
  return view(i);
}

std::vector<napi_value> Args::elements(size_t i) const {
  uint32_t length = 0;
  if (napi_get_array_length(env_, values_[i], &length) != napi_ok) bad_argument(i, "an array");
  std::vector<napi_value> items(length);
  for (uint32_t k = 0; k < length; ++k) napi_get_element(env_, values_[i], k, &items[k]);
  return items;
}

std::vector<View> Args::views(size_t i) const {
  std::vector<View> out;
  for (napi_value item : elements(i)) {
    double handle;
    if (napi_get_value_double(env_, item, &handle) != napi_ok) bad_argument(i, "an array of tensors");
    out.push_back(handle == 0 ? View{} : view_of(i, handle));
  }
  return out;
}

std::vector<bool> Args::booleans(size_t i) const {
  std::vector<bool> out;
  for (napi_value item : elements(i)) {
    bool value;
    if (napi_get_value_bool(env_, item, &value) != napi_ok) bad_argument(i, "an array of booleans");
    out.push_back(value);
  }
  return out;
}

napi_value Args::undefined() const {
  napi_value value;
  napi_get_undefined(env_, &value);
  return value;
}

napi_value Args::from(double number) const {
  napi_value value;
  napi_create_double(env_, number, &value);
  return value;
}

napi_value Args::from(bool boolean) const {
  napi_value value;
  napi_get_boolean(env_, boolean, &value);
  return value;
}

napi_value Args::from(const std::string& text) const {
  napi_value value;
  napi_create_string_utf8(env_, text.data(), text.size(), &value);
  return value;
}

Napi::Error error_to_js(Napi::Env env, const std::exception& error) {
  Napi::Error js = Napi::Error::New(env, error.what());
  auto* coded = dynamic_cast<const Error*>(&error);
  js.Value().Set("code", coded ? coded->code() : "ERR_NATIVE");
  return js;
}

void throw_to_js(napi_env env, const std::exception& error) { error_to_js(env, error).ThrowAsJavaScriptException(); }

namespace {

class PromiseWorker final : public Napi::AsyncWorker {
 public:
  PromiseWorker(Napi::Env env, std::function<void()> work, std::function<Napi::Value(Napi::Env)> result)
      : Napi::AsyncWorker(env), deferred_(env), work_(std::move(work)), result_(std::move(result)) {}
  Napi::Promise promise() const { return deferred_.Promise(); }

  void Execute() override {
    try {
      work_();
    } catch (...) {
      failure_ = std::current_exception();
    }
  }

  void OnOK() override {
    Napi::HandleScope scope(Env());
    try {
      if (failure_) std::rethrow_exception(failure_);
      deferred_.Resolve(result_(Env()));
    } catch (const std::exception& error) {
      deferred_.Reject(error_to_js(Env(), error).Value());
    }
  }

 private:
  Napi::Promise::Deferred deferred_;
  std::function<void()> work_;
  std::function<Napi::Value(Napi::Env)> result_;
  std::exception_ptr failure_;
};

}  // namespace

Napi::Value run_async(Napi::Env env, std::function<void()> work, std::function<Napi::Value(Napi::Env)> result) {
  auto* worker = new PromiseWorker(env, std::move(work), std::move(result));
  Napi::Promise promise = worker->promise();
  worker->Queue();
  return promise;
}

namespace {

Napi::Object init(Napi::Env env, Napi::Object exports) {
  auto* state = new AddonState();
  state->current[0] = state->runtime.compute();
  napi_set_instance_data(env, state, nullptr, nullptr);
  // A cleanup hook, not a finalizer: it runs before the environment's handles go.
  napi_add_env_cleanup_hook(
      env, [](void* data) { delete static_cast<AddonState*>(data); }, state);
  register_runtime(exports);
  register_tensor(exports);
  register_ops(exports);
  register_profile(exports);
  register_files(exports);
  register_comm(exports);
  return exports;
}

}  // namespace
}  // namespace rz::binding

static Napi::Object Init(Napi::Env env, Napi::Object exports) { return rz::binding::init(env, exports); }
NODE_API_MODULE(rankzero, Init)
