// The state of one JavaScript environment, and how functions reach it.
#pragma once
#include <any>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "binding/handles.h"
#include "binding/napi_setup.h"
#include "core/runtime.h"
#include "ops/op.h"

namespace rz::binding {

// Live tensor handles. A storage is given back when its last handle goes (Storage::drop_handle).
class TensorTable {
 public:
  double insert(TensorRef tensor) {
    tensor.storage->add_handle();
    bool on_device = tensor.storage->device() != Device::Cpu;
    return table_.insert(std::move(tensor), on_device);
  }
  TensorRef& at(double handle) { return table_.at(handle); }
  TensorRef* find(double handle) { return table_.find(handle); }
  bool release(double handle) {
    std::shared_ptr<Storage> storage = table_.contains(handle) ? table_.at(handle).storage : nullptr;
    if (!storage) return false;
    table_.release(handle);
    storage->drop_handle();
    return true;
  }
  size_t live() const { return table_.live(); }

 private:
  HandleTable<TensorRef, HandleKind::Tensor> table_;
};

struct AddonState {
  // Concepts with state of their own (files, store, groups) keep it here, keyed by name; destroyed before the runtime.
  Runtime runtime;
  TensorTable tensors;
  HandleTable<Event, HandleKind::Event> events;
  std::unordered_map<std::string, std::any> concepts;
  Stream* current[2] = {};  // by device: the stream that ops enqueue on; null before the device is used

  Stream* current_on(Device device) {
    Stream*& stream = current[static_cast<int>(device)];
    if (!stream) stream = runtime.compute(device);
    return stream;
  }

  template <class T>
  T& concept_state(const char* name) {
    std::any& slot = concepts[name];
    if (!slot.has_value()) slot = std::make_shared<T>();
    return *std::any_cast<std::shared_ptr<T>&>(slot);
  }
};

// Number i of a list of names as RZ_OPERANDS makes it: "y, rstd, x".
std::string_view operand_name(std::string_view operands, size_t i);

// The arguments of one call. Accessors name the function, the argument, and what was got when a value is not as wanted.
class Args {
 public:
  static constexpr size_t kMax = 24;
  Args(napi_env env, napi_callback_info info);

  napi_env env() const { return env_; }
  AddonState& state() const { return *state_; }
  Runtime& runtime() const { return state_->runtime; }
  // The current stream of the host: files, collectives between CPU ranks, bytes to and from JavaScript.
  CpuStream* stream() const { return static_cast<CpuStream*>(state_->current[0]); }
  // The stream of an op: the current one of the device on which its operands are.
  Stream* op_stream() const { return op_stream_ ? op_stream_ : state_->current[0]; }
  size_t count() const { return count_; }
  napi_value raw(size_t i) const { return values_[i]; }
  Napi::Value value(size_t i) const { return Napi::Value(env_, values_[i]); }

  bool missing(size_t i) const;  // undefined or null
  double number(size_t i) const;
  int64_t integer(size_t i) const;  // a whole number within ±2^53
  uint64_t u64(size_t i) const;     // a bigint
  bool boolean(size_t i) const;
  std::string string(size_t i) const;
  DType dtype(size_t i) const;
  Device device(size_t i) const;  // absent: the host
  // Bytes of a TypedArray, ArrayBuffer view or Buffer. Valid during the call.
  std::pair<std::byte*, size_t> bytes(size_t i) const;

  TensorRef& tensor(size_t i) const;
  TensorRef& host_tensor(size_t i) const;  // ERR_DEVICE for one on a device
  // The arguments are `count` operands of an op, whose names errors give from here on.
  void expect_operands(const char* op, const char* operands, size_t count) {
    name_ = op;
    operands_ = operands;
    if (count_ > count) refuse_count(count);
  }
  // The operand of an op: its storage is marked as used on the op's stream. ERR_DEVICE if the operands are not on one device.
  View view(size_t i) const;
  OptionalView optional(size_t i) const;  // 0, null or undefined: absent
  // Arrays: handles (0: absent), flags, and whole numbers within ±2^53.
  std::vector<View> views(size_t i) const;
  std::vector<OptionalView> optionals(size_t i) const;
  std::vector<bool> booleans(size_t i) const;
  std::vector<int64_t> integers(size_t i) const;

  napi_value undefined() const;
  napi_value from(double value) const;
  napi_value from(bool value) const;
  napi_value from(const std::string& value) const;

 private:
  TensorRef& tensor_of(size_t i, double handle) const;
  View view_of(size_t i, const TensorRef& tensor) const;
  std::vector<napi_value> elements(size_t i) const;
  std::string argument(size_t i) const;  // "x (argument 2)"
  [[noreturn]] void refuse(size_t i, const char* wanted) const;
  [[noreturn]] void refuse_element(size_t i, napi_value got, const char* wanted) const;
  [[noreturn]] void refuse_count(size_t count) const;
  [[noreturn]] void refuse_handle(size_t i) const;
  [[noreturn]] void refuse_device(size_t i, Device device) const;

  napi_env env_;
  AddonState* state_;
  const char* name_;  // of the function, or of the op
  const char* operands_ = nullptr;
  mutable Stream* op_stream_ = nullptr;
  size_t count_ = kMax;
  napi_value values_[kMax];
};

// `run` is called by the stream's worker.
inline void enqueue(CpuStream* stream, const char* op, std::function<void()> run) { stream->enqueue(op, std::move(run)); }

// Turns C++ exceptions into JavaScript errors with `code`. Every function of the addon is wrapped by it.
void throw_to_js(napi_env env, const std::exception& error);
Napi::Error error_to_js(Napi::Env env, const std::exception& error);

template <napi_value (*kFunction)(Args&)>
napi_value wrap(napi_env env, napi_callback_info info) {
  try {
    Args args(env, info);
    return kFunction(args);
  } catch (const Napi::Error& error) {
    error.ThrowAsJavaScriptException();
  } catch (const std::exception& error) {
    throw_to_js(env, error);
  }
  return nullptr;
}

template <napi_value (*kFunction)(Args&)>
void define(Napi::Object exports, const char* name) {
  napi_value function;
  napi_create_function(exports.Env(), name, NAPI_AUTO_LENGTH, wrap<kFunction>, const_cast<char*>(name), &function);
  exports.Set(name, Napi::Value(exports.Env(), function));
}

// Runs `work` on libuv's pool and settles a promise with what `result` makes of it on the JavaScript thread.
// Only for what blocks on files or on a stream: collectives and ops go on streams.
Napi::Value run_async(Napi::Env env, std::function<void()> work, std::function<Napi::Value(Napi::Env)> result);

// One registration function per concept, called once per environment.
void register_runtime(Napi::Object exports);
void register_tensor(Napi::Object exports);
void register_ops(Napi::Object exports);
void register_profile(Napi::Object exports);
void register_files(Napi::Object exports);
void register_comm(Napi::Object exports);

}  // namespace rz::binding
