// Tensor handles: allocation, views, and the bytes that cross to and from JavaScript.
#include <cstring>

#include "binding/addon.h"

namespace rz::binding {
namespace {

// (numel, dtype, kind, device) → handle; uninitialised, of the current stream of the device
napi_value tensor_empty(Args& a) {
  int64_t numel = a.integer(0);
  DType dtype = a.dtype(1);
  int64_t kind = a.integer(2);
  if (numel < 0) fail("ERR_SHAPE", "a tensor cannot have ", numel, " elements");
  if (kind < 0 || kind >= kMemoryKinds) fail("ERR_ARGUMENT", "memory kind ", kind, " does not exist");
  size_t bytes = static_cast<size_t>(numel * size_of(dtype));
  auto storage = a.runtime().allocate(bytes, a.state().current_on(a.device(3)), static_cast<MemoryKind>(kind));
  return a.from(a.state().tensors.insert({std::move(storage), 0, numel, dtype}));
}

// (handle, offset, numel) → handle on the same storage
napi_value tensor_view(Args& a) {
  TensorRef t = a.tensor(0);
  int64_t offset = a.integer(1), numel = a.integer(2);
  if (offset < 0 || numel < 0 || offset + numel > t.numel) {
    fail("ERR_SHAPE", "a view of elements ", offset, " to ", offset + numel, " does not fit a tensor of ", t.numel);
  }
  t.offset += offset;
  t.numel = numel;
  return a.from(a.state().tensors.insert(std::move(t)));
}

napi_value tensor_retain(Args& a) {
  TensorRef t = a.tensor(0);
  return a.from(a.state().tensors.insert(std::move(t)));
}

napi_value tensor_release(Args& a) { return a.from(a.state().tensors.release(a.number(0))); }

// How many handles share the storage.
napi_value tensor_use_count(Args& a) { return a.from(static_cast<double>(a.tensor(0).storage->handles())); }

void expect_bytes(const char* what, size_t got, size_t want) {
  if (got != want) fail("ERR_SHAPE", what, ": the tensor has ", want, " bytes but the buffer has ", got);
}

// Copies from JavaScript memory; the source may change as soon as the call returns.
napi_value tensor_write(Args& a) {
  TensorRef t = a.tensor(0);
  auto [data, size] = a.bytes(1);
  expect_bytes("write", size, t.bytes());
  auto copy = std::make_shared<std::vector<std::byte>>(data, data + size);
  if (t.storage->device() == Device::Cuda) {
    Stream* stream = a.state().current_on(Device::Cuda);
    t.storage->used_on(stream);
    a.runtime().cuda().upload(t.data(), copy->data(), size, *a.stream(), *stream);
    enqueue(a.stream(), "write", [copy] {});  // keeps the bytes until they were taken
    return a.undefined();
  }
  t.storage->used_on(a.stream());
  enqueue(a.stream(), "write", [t, copy] { std::memcpy(t.data(), copy->data(), copy->size()); });
  return a.undefined();
}

// The values of a tensor that is ready; zeros in a dry run.
void copy_out(const Runtime& runtime, const TensorRef& t, void* to) {
  if (runtime.is_dry()) std::memset(to, 0, t.bytes());
  else std::memcpy(to, t.data(), t.bytes());
}

// Blocks until the tensor is ready, then copies into JavaScript memory.
napi_value tensor_read(Args& a) {
  TensorRef t = a.tensor(0);
  auto [data, size] = a.bytes(1);
  expect_bytes("read", size, t.bytes());
  a.runtime().synchronize(*t.storage);
  if (t.storage->device() == Device::Cuda) a.runtime().cuda().read(data, t.data(), size, *a.state().current_on(Device::Cuda));
  else copy_out(a.runtime(), t, data);
  return a.undefined();
}

// A copy on the host that is on its way.
TensorRef to_host(Args& a, const TensorRef& t) {
  Stream* stream = a.state().current_on(Device::Cuda);
  for (uint32_t mask = t.storage->foreign_streams(); mask; mask &= mask - 1) stream->wait(a.runtime().stream(std::countr_zero(mask))->record());
  stream->wait(t.storage->home()->record());
  t.storage->used_on(stream);
  TensorRef copy{a.runtime().allocate(t.bytes(), a.stream(), MemoryKind::Staging), 0, t.numel, t.dtype};
  a.runtime().cuda().download(copy.data(), t.data(), t.bytes(), *a.stream(), *stream);
  return copy;
}

// → promise of an ArrayBuffer
napi_value tensor_read_async(Args& a) {
  TensorRef t = a.tensor(0);
  if (t.storage->device() == Device::Cuda) t = to_host(a, t);
  // Order the copy behind everything enqueued so far, whichever stream it is on.
  std::vector<Event> events{t.storage->home()->record()};
  for (uint32_t mask = t.storage->foreign_streams(); mask; mask &= mask - 1) {
    events.push_back(a.runtime().stream(std::countr_zero(mask))->record());
  }
  // A handle of its own: the memory is not reused before the copy, which is not on a stream.
  AddonState* state = &a.state();
  double handle = state->tensors.insert(t);
  std::shared_ptr<void> pin(nullptr, [state, handle](void*) { state->tensors.release(handle); });
  return run_async(
      a.env(),
      [events] {
        for (const Event& event : events) event.stream->synchronize(event);
      },
      [t, pin, state](Napi::Env env) -> Napi::Value {
        Napi::ArrayBuffer out = Napi::ArrayBuffer::New(env, t.bytes());
        copy_out(state->runtime, t, out.Data());
        return out;
      });
}

}  // namespace

void register_tensor(Napi::Object exports) {
  define<tensor_empty>(exports, "tensorEmpty");
  define<tensor_view>(exports, "tensorView");
  define<tensor_retain>(exports, "tensorRetain");
  define<tensor_release>(exports, "tensorRelease");
  define<tensor_use_count>(exports, "tensorUseCount");
  define<tensor_write>(exports, "tensorWrite");
  define<tensor_read>(exports, "tensorRead");
  define<tensor_read_async>(exports, "tensorReadAsync");
}

}  // namespace rz::binding
