// The ops. Each is read, checked and enqueued by what its struct says of its fields (RZ_OPERANDS): the order of arguments, their
// types and their names are written nowhere else.
#include <cctype>

#include "binding/addon.h"
#include "core/philox.h"
#include "ops/all.h"
#include "ops/dispatch.h"
#include "ops/work.h"

namespace rz::binding {
namespace {

// How a field of each type is read, and what opSignatures calls it.
template <class T>
struct Operand;

template <>
struct Operand<View> {
  static constexpr const char* type = "tensor";
  static View read(const Args& a, size_t i) { return a.view(i); }
};
template <>
struct Operand<OptionalView> {
  static constexpr const char* type = "tensor?";
  static OptionalView read(const Args& a, size_t i) { return a.optional(i); }
};
template <>
struct Operand<std::vector<View>> {
  static constexpr const char* type = "tensor[]";
  static std::vector<View> read(const Args& a, size_t i) { return a.views(i); }
};
template <>
struct Operand<std::vector<OptionalView>> {
  static constexpr const char* type = "tensor?[]";
  static std::vector<OptionalView> read(const Args& a, size_t i) { return a.optionals(i); }
};
template <>
struct Operand<int64_t> {
  static constexpr const char* type = "integer";
  static int64_t read(const Args& a, size_t i) { return a.integer(i); }
};
template <>
struct Operand<double> {
  static constexpr const char* type = "number";
  static double read(const Args& a, size_t i) { return a.number(i); }
};
template <>
struct Operand<float> {
  static constexpr const char* type = "number";
  static float read(const Args& a, size_t i) { return static_cast<float>(a.number(i)); }
};
template <>
struct Operand<bool> {
  static constexpr const char* type = "boolean";
  static bool read(const Args& a, size_t i) { return a.boolean(i); }
};
template <>
struct Operand<std::vector<bool>> {
  static constexpr const char* type = "boolean[]";
  static std::vector<bool> read(const Args& a, size_t i) { return a.booleans(i); }
};
template <>
struct Operand<uint64_t> {
  static constexpr const char* type = "bigint";
  static uint64_t read(const Args& a, size_t i) { return a.u64(i); }
};
template <>
struct Operand<TensorKey> {
  static constexpr const char* type = "string";
  static TensorKey read(const Args& a, size_t i) { return {philox::key_of(a.string(i))}; }
};

template <class Op>
using Members = decltype(std::declval<Op>().members());
template <class Op>
using Indices = std::make_index_sequence<std::tuple_size_v<Members<Op>>>;
template <class Op, size_t kIndex>
using OperandAt = Operand<std::remove_reference_t<std::tuple_element_t<kIndex, Members<Op>>>>;

template <class Op, size_t... kIndex>
Op read(Args& a, std::index_sequence<kIndex...>) {
  static_assert(sizeof...(kIndex) <= Args::kMax);
  a.expect_operands(Op::name, Op::operands, sizeof...(kIndex));
  return Op{OperandAt<Op, kIndex>::read(a, kIndex)...};
}

// In a dry run: memory that an op takes on a device for itself, where it is large and no matter of the device.
template <class Op>
void count_scratch(const Op&, Runtime&, Stream*) {}
void count_scratch(const LinearCrossEntropy& op, Runtime& runtime, Stream* stream) {
  const cuda::LossScratch scratch(op, KernelChoices::of_environment().narrow_logits);
  std::vector<std::shared_ptr<Storage>> held;
  for (size_t bytes : {scratch.sums, scratch.logits, scratch.d})
    if (bytes > 0) held.push_back(runtime.allocate(bytes, stream, MemoryKind::Other));
}

// Checks the op and enqueues it on the current stream of its operands' device.
template <class Op>
napi_value launch(Args& a) {
  const Op op = read<Op>(a, Indices<Op>());
  op.check();
  Stream* stream = a.op_stream();
  if (stream->device() == Device::Cuda) {
    if (a.runtime().is_dry()) {
      count_scratch(op, a.runtime(), stream);
      return a.undefined();
    }
    cuda::expect_op<Op>();
    cuda::enqueue<Op>(op, *stream);
    return a.undefined();
  }
  enqueue(static_cast<CpuStream*>(stream), Op::name, [op] {
    if (TaskRecord* record = current_task()) record->work = work_of(op);
    cpu::run(op);
  });
  return a.undefined();
}

// Between devices: of one dtype, ordered behind the current streams of both.
napi_value copy_across(Args& a, const TensorRef& dst, const TensorRef& src) {
  expect_numel(Copy::name, "src", View{src.data(), src.dtype, src.numel}, dst.numel);
  expect_dtype(Copy::name, "src, from one device to another,", View{src.data(), src.dtype, src.numel}, dst.dtype);
  const bool up = dst.storage->device() == Device::Cuda;
  Stream* stream = a.state().current_on(Device::Cuda);
  const TensorRef& on_host = up ? src : dst;
  const TensorRef& on_device = up ? dst : src;
  on_host.storage->used_on(a.stream());
  on_device.storage->used_on(stream);
  if (up) a.runtime().cuda().upload(on_device.data(), on_host.data(), dst.bytes(), *a.stream(), *stream);
  else a.runtime().cuda().download(on_host.data(), on_device.data(), dst.bytes(), *a.stream(), *stream);
  return a.undefined();
}

// The one op whose operands may be on two devices.
napi_value copy(Args& a) {
  a.expect_operands(Copy::name, Copy::operands, 2);
  const TensorRef &dst = a.tensor(0), &src = a.tensor(1);
  if (dst.storage->device() != src.storage->device()) return copy_across(a, dst, src);
  return launch<Copy>(a);
}

// rms_norm_forward → rmsNormForward
std::string camel_case(std::string_view name) {
  std::string out;
  for (size_t i = 0; i < name.size(); ++i) out += name[i] == '_' ? static_cast<char>(std::toupper(name[++i])) : name[i];
  return out;
}

// (device) → names of the ops that it has
napi_value op_names(Args& a) {
  Napi::Array names = Napi::Array::New(a.env());
  const bool on_cuda = a.device(0) == Device::Cuda;
  if (on_cuda) a.runtime().cuda();
  AllOps::each([&]<class Op>() {
    if (!on_cuda || cuda::enqueue<Op>) names.Set(names.Length(), Op::name);
  });
  return names;
}

// (device, vocab, dim, rows) → rows of logits that a loss has at a time
napi_value loss_chunk_rows(Args& a) {
  const int64_t vocab = a.integer(1), dim = a.integer(2), rows = a.integer(3);
  if (a.device(0) == Device::Cpu) return a.from(static_cast<double>(cpu::loss_chunk_rows(vocab, dim, rows)));
  return a.from(static_cast<double>(cuda::loss_chunk_rows(vocab, rows)));
}

// () → [{ name, operands: [[name, type], …] }, …], of all ops
napi_value op_signatures(Args& a) {
  Napi::Env env = a.env();
  Napi::Array signatures = Napi::Array::New(env);
  AllOps::each([&]<class Op>() {
    Napi::Array operands = Napi::Array::New(env);
    [&]<size_t... kIndex>(std::index_sequence<kIndex...>) {
      for (const char* type : {OperandAt<Op, kIndex>::type...}) {
        Napi::Array operand = Napi::Array::New(env, 2);
        operand.Set(0u, camel_case(operand_name(Op::operands, operands.Length())));
        operand.Set(1u, type);
        operands.Set(operands.Length(), operand);
      }
    }(Indices<Op>());
    Napi::Object signature = Napi::Object::New(env);
    signature.Set("name", camel_case(Op::name));
    signature.Set("operands", operands);
    signatures.Set(signatures.Length(), signature);
  });
  return signatures;
}

}  // namespace

void register_ops(Napi::Object exports) {
  define<op_names>(exports, "opNames");
  define<op_signatures>(exports, "opSignatures");
  define<loss_chunk_rows>(exports, "lossChunkRows");
  AllOps::each([&]<class Op>() {
    static const std::string name = camel_case(Op::name);  // a function keeps a pointer to its name
    if constexpr (std::is_same_v<Op, Copy>) define<copy>(exports, name.c_str());
    else define<launch<Op>>(exports, name.c_str());
  });
}

}  // namespace rz::binding
