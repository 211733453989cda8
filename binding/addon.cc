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

std::string_view operand_name(std::string_view operands, size_t i) {
  for (; i > 0; --i) operands.remove_prefix(operands.find(", ") + 2);
  return operands.substr(0, operands.find(", "));
}

std::string Args::argument(size_t i) const {
  const std::string number = "argument " + std::to_string(i + 1);
  return operands_ ? std::string(operand_name(operands_, i)) + " (" + number + ")" : number;
}

namespace {

std::string describe(napi_env env, napi_value value) {
  napi_valuetype type;
  napi_typeof(env, value, &type);
  if (type == napi_number) return Napi::Value(env, value).ToString();
  constexpr const char* names[] = {"undefined", "null",      "a boolean",  "a number",  "a string",
                                   "a symbol",  "an object", "a function", "an object", "a bigint"};
  return names[type];
}

bool is_whole(double value) { return std::abs(value) <= 0x1p53 && value == std::floor(value); }

}  // namespace

void Args::refuse(size_t i, const char* wanted) const {
  fail("ERR_ARGUMENT", "[", name_, "] ", argument(i), " must be ", wanted, " but is ", describe(env_, values_[i]));
}

void Args::refuse_element(size_t i, napi_value got, const char* wanted) const {
  fail("ERR_ARGUMENT", "[", name_, "] ", argument(i), " must be an array of ", wanted, " but has ", describe(env_, got));
}

void Args::refuse_count(size_t count) const {
  fail("ERR_ARGUMENT", "[", name_, "] takes ", count, " arguments (", operands_, ") but got ", count_);
}

void Args::refuse_handle(size_t i) const {
  fail("ERR_HANDLE", "[", name_, "] ", argument(i), ": this tensor was disposed, or the handle is not a tensor");
}

void Args::refuse_device(size_t i, Device device) const {
  fail("ERR_DEVICE", "[", name_, "] the operands must be on one device, but ", argument(i), " is on ", name_of(device),
       " and one before it on ", name_of(op_stream_->device()), "; move one of them with to()");
}

bool Args::missing(size_t i) const {
  napi_valuetype type;
  napi_typeof(env_, values_[i], &type);
  return type == napi_undefined || type == napi_null;
}

double Args::number(size_t i) const {
  double value;
  if (napi_get_value_double(env_, values_[i], &value) != napi_ok) refuse(i, "a number");
  return value;
}

int64_t Args::integer(size_t i) const {
  double value = number(i);
  if (!is_whole(value)) refuse(i, "a whole number");
  return static_cast<int64_t>(value);
}

uint64_t Args::u64(size_t i) const {
  uint64_t value;
  bool lossless;
  if (napi_get_value_bigint_uint64(env_, values_[i], &value, &lossless) != napi_ok) refuse(i, "a bigint");
  return value;
}

bool Args::boolean(size_t i) const {
  bool value;
  if (napi_get_value_bool(env_, values_[i], &value) != napi_ok) refuse(i, "a boolean");
  return value;
}

std::string Args::string(size_t i) const {
  size_t length = 0;
  if (napi_get_value_string_utf8(env_, values_[i], nullptr, 0, &length) != napi_ok) refuse(i, "a string");
  std::string text(length, '\0');
  napi_get_value_string_utf8(env_, values_[i], text.data(), length + 1, &length);
  return text;
}

DType Args::dtype(size_t i) const {
  int64_t value = integer(i);
  if (value < 0 || value > static_cast<int64_t>(DType::UInt8)) refuse(i, "a dtype");
  return static_cast<DType>(value);
}

Device Args::device(size_t i) const {
  if (i >= count_ || missing(i)) return Device::Cpu;
  int64_t value = integer(i);
  if (value < 0 || value > static_cast<int64_t>(Device::Cuda)) refuse(i, "a device");
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
  if (!is_buffer) refuse(i, "a typed array or ArrayBuffer");
  napi_get_arraybuffer_info(env_, values_[i], &data, &length);
  return {static_cast<std::byte*>(data), length};
}

TensorRef& Args::tensor_of(size_t i, double handle) const {
  TensorRef* tensor = state_->tensors.find(handle);
  if (!tensor) refuse_handle(i);
  return *tensor;
}

TensorRef& Args::tensor(size_t i) const {
  double handle;
  if (napi_get_value_double(env_, values_[i], &handle) != napi_ok || handle == 0) refuse(i, "a tensor");
  return tensor_of(i, handle);
}

TensorRef& Args::host_tensor(size_t i) const {
  TensorRef& t = tensor(i);
  if (t.storage->device() != Device::Cpu)
    fail("ERR_DEVICE", "[", name_, "] ", argument(i), " must be on device cpu but is on ", name_of(t.storage->device()));
  return t;
}

View Args::view_of(size_t i, const TensorRef& t) const {
  Device device = t.storage->device();
  if (!op_stream_) op_stream_ = state_->current_on(device);
  else if (op_stream_->device() != device) refuse_device(i, device);
  t.storage->used_on(op_stream_);
  return {t.data(), t.dtype, t.numel};
}

View Args::view(size_t i) const { return view_of(i, tensor(i)); }

OptionalView Args::optional(size_t i) const {
  double handle;
  if (napi_get_value_double(env_, values_[i], &handle) != napi_ok) {
    if (!missing(i)) refuse(i, "a tensor or NONE");
    return {};
  }
  return handle == 0 ? OptionalView{} : view_of(i, tensor_of(i, handle));
}

std::vector<napi_value> Args::elements(size_t i) const {
  uint32_t length = 0;
  if (napi_get_array_length(env_, values_[i], &length) != napi_ok) refuse(i, "an array");
  std::vector<napi_value> items(length);
  for (uint32_t k = 0; k < length; ++k) napi_get_element(env_, values_[i], k, &items[k]);
  return items;
}

std::vector<View> Args::views(size_t i) const {
  std::vector<View> out;
  for (napi_value item : elements(i)) {
    double handle;
    if (napi_get_value_double(env_, item, &handle) != napi_ok || handle == 0) refuse_element(i, item, "tensors");
    out.push_back(view_of(i, tensor_of(i, handle)));
  }
  return out;
}

std::vector<OptionalView> Args::optionals(size_t i) const {
  std::vector<OptionalView> out;
  for (napi_value item : elements(i)) {
    double handle;
    if (napi_get_value_double(env_, item, &handle) != napi_ok) refuse_element(i, item, "tensors or NONE");
    out.push_back(handle == 0 ? OptionalView{} : view_of(i, tensor_of(i, handle)));
  }
  return out;
}

std::vector<int64_t> Args::integers(size_t i) const {
  std::vector<int64_t> out;
  for (napi_value item : elements(i)) {
    double value;
    if (napi_get_value_double(env_, item, &value) != napi_ok || !is_whole(value)) refuse_element(i, item, "whole numbers");
    out.push_back(static_cast<int64_t>(value));
  }
  return out;
}

std::vector<bool> Args::booleans(size_t i) const {
  std::vector<bool> out;
  for (napi_value item : elements(i)) {
    bool value;
    if (napi_get_value_bool(env_, item, &value) != napi_ok) refuse_element(i, item, "booleans");
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
