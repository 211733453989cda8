// The ops, one line each: arguments in the order of the op's fields (views first, then sizes and flags).
#include "binding/addon.h"
#include "core/philox.h"
#include "ops/all.h"
#include "ops/dispatch.h"
#include "ops/work.h"

namespace rz::binding {
namespace {

// Checks the op and enqueues it on the current stream of its operands' device.
template <class Op>
napi_value launch(const Args& a, const Op& op) {
  static_assert(AllOps::has<Op>);
  op.check();
  Stream* stream = a.op_stream();
  if (stream->device() == Device::Cuda) {
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

float f32(Args& a, size_t i) { return static_cast<float>(a.number(i)); }

napi_value fill(Args& a) { return launch(a, Fill{a.view(0), a.number(1)}); }
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

napi_value copy(Args& a) {
  const TensorRef &dst = a.tensor(0), &src = a.tensor(1);
  if (dst.storage->device() != src.storage->device()) return copy_across(a, dst, src);
  return launch(a, Copy{a.view(0), a.view(1)});
}
napi_value copy_rows(Args& a) {
  return launch(a, CopyRows{a.view(0), a.view(1), a.integer(2), a.integer(3), a.integer(4), a.integer(5), a.integer(6), a.integer(7)});
}
napi_value add(Args& a) { return launch(a, Add{a.view(0), a.view(1), a.view(2)}); }
napi_value scale(Args& a) { return launch(a, Scale{a.view(0), a.view(1), a.optional(2), f32(a, 3), a.boolean(4)}); }
napi_value sum_squares(Args& a) { return launch(a, SumSquares{a.view(0), a.view(1), a.boolean(2)}); }
napi_value clip_factor(Args& a) { return launch(a, ClipFactor{a.view(0), a.view(1), a.view(2), f32(a, 3)}); }
napi_value random_fill(Args& a) {
  return launch(a, RandomFill{a.view(0), a.u64(1), philox::key_of(a.string(2)), a.integer(3), a.boolean(4), f32(a, 5), f32(a, 6)});
}

napi_value embedding_forward(Args& a) {
  return launch(a, EmbeddingForward{a.view(0), a.view(1), a.view(2), a.integer(3), a.integer(4), a.integer(5), a.integer(6)});
}
napi_value embedding_backward(Args& a) {
  return launch(a, EmbeddingBackward{a.view(0), a.view(1), a.view(2), a.integer(3), a.integer(4), a.integer(5), a.integer(6), a.boolean(7)});
}

napi_value linear_forward(Args& a) {
  return launch(a, LinearForward{a.view(0), a.view(1), a.view(2), a.optional(3), a.integer(4), a.integer(5), a.integer(6)});
}
napi_value linear_backward_input(Args& a) {
  return launch(a, LinearBackwardInput{a.view(0), a.view(1), a.view(2), a.integer(3), a.integer(4), a.integer(5), a.boolean(6)});
}
napi_value linear_backward_weight(Args& a) {
  return launch(a, LinearBackwardWeight{a.view(0), a.optional(1), a.view(2), a.view(3), a.integer(4), a.integer(5), a.integer(6), a.boolean(7)});
}

napi_value rms_norm_forward(Args& a) {
  return launch(a, RmsNormForward{a.view(0), a.view(1), a.view(2), a.view(3), a.integer(4), a.integer(5), f32(a, 6)});
}
napi_value rms_norm_backward(Args& a) {
  return launch(a, RmsNormBackward{a.view(0), a.optional(1), a.view(2), a.view(3), a.view(4), a.view(5), a.optional(6), a.integer(7), a.integer(8), a.boolean(9)});
}

napi_value layer_norm_forward(Args& a) {
  return launch(a, LayerNormForward{a.view(0), a.view(1), a.view(2), a.view(3), a.view(4), a.view(5), a.integer(6), a.integer(7), f32(a, 8)});
}
napi_value layer_norm_backward(Args& a) {
  return launch(a, LayerNormBackward{a.view(0), a.optional(1), a.optional(2), a.view(3), a.view(4), a.view(5), a.view(6), a.view(7), a.integer(8),
                                    a.integer(9), a.boolean(10), a.boolean(11)});
}

napi_value rope_table(Args& a) {
  return launch(a, RopeTable{a.view(0), a.view(1), a.view(2), a.view(3), a.integer(4), a.integer(5), f32(a, 6)});
}
napi_value rope(Args& a) {
  return launch(a, Rope{a.view(0), a.view(1), a.view(2), a.view(3), a.integer(4), a.integer(5), a.integer(6), a.integer(7), a.boolean(8)});
}

napi_value split_qkv(Args& a) {
  return launch(a, SplitQkv{a.view(0), a.view(1), a.view(2), a.view(3), a.integer(4), a.integer(5), a.integer(6)});
}
napi_value merge_qkv(Args& a) {
  return launch(a, MergeQkv{a.view(0), a.view(1), a.view(2), a.view(3), a.integer(4), a.integer(5), a.integer(6)});
}

napi_value attention_forward(Args& a) {
  return launch(a, AttentionForward{a.view(0), a.view(1), a.view(2), a.view(3), a.view(4), a.view(5), a.view(6), a.integer(7), a.integer(8),
                                   a.integer(9), a.integer(10), a.integer(11), a.integer(12), a.integer(13), f32(a, 14)});
}
napi_value attention_backward(Args& a) {
  return launch(a, AttentionBackward{a.view(0), a.view(1), a.view(2), a.view(3), a.view(4), a.view(5), a.view(6), a.view(7), a.view(8), a.view(9),
                                    a.integer(10), a.integer(11), a.integer(12), a.integer(13), a.integer(14), a.integer(15), f32(a, 16)});
}

napi_value swiglu_forward(Args& a) { return launch(a, SwigluForward{a.view(0), a.view(1), a.view(2)}); }
napi_value swiglu_backward(Args& a) { return launch(a, SwigluBackward{a.view(0), a.view(1), a.view(2), a.view(3), a.view(4)}); }
napi_value gelu_forward(Args& a) { return launch(a, GeluForward{a.view(0), a.view(1), a.boolean(2)}); }
napi_value gelu_backward(Args& a) { return launch(a, GeluBackward{a.view(0), a.view(1), a.view(2), a.boolean(3)}); }

napi_value routing_forward(Args& a) {
  return launch(a, RoutingForward{a.view(0), a.view(1), a.view(2), a.view(3), a.view(4), a.optional(5), a.view(6), a.integer(7), a.integer(8), a.integer(9), a.integer(10)});
}
napi_value routing_backward(Args& a) {
  return launch(a, RoutingBackward{a.view(0), a.view(1), a.view(2), a.view(3), a.view(4), a.optional(5), a.integer(6), a.integer(7), a.integer(8), a.integer(9), f32(a, 10)});
}
napi_value experts_forward(Args& a) {
  return launch(a, ExpertsForward{a.view(0), a.optional(1), a.optional(2), a.view(3), a.view(4), a.view(5), a.view(6), a.views(7), a.views(8), a.views(9),
                                 a.integer(10), a.integer(11), a.integer(12), a.integer(13)});
}
napi_value experts_backward(Args& a) {
  return launch(a, ExpertsBackward{a.optional(0), a.view(1), a.views(2), a.views(3), a.views(4), a.view(5), a.view(6), a.view(7), a.view(8), a.view(9),
                                  a.view(10), a.view(11), a.views(12), a.views(13), a.views(14), a.booleans(15),
                                  a.integer(16), a.integer(17), a.integer(18), a.integer(19)});
}
napi_value balancing_loss_forward(Args& a) {
  return launch(a, BalancingLossForward{a.view(0), a.view(1), a.view(2), a.integer(3), a.integer(4), a.integer(5), a.number(6)});
}
napi_value balancing_loss_backward(Args& a) {
  return launch(a, BalancingLossBackward{a.view(0), a.view(1), a.view(2), a.integer(3), a.integer(4), a.integer(5), a.number(6)});
}

napi_value linear_cross_entropy(Args& a) {
  return launch(a, LinearCrossEntropy{a.view(0), a.optional(1), a.optional(2), a.view(3), a.view(4), a.view(5), a.integer(6), a.integer(7),
                                     a.integer(8), a.number(9), a.boolean(10)});
}
napi_value cross_entropy(Args& a) {
  return launch(a, CrossEntropy{a.view(0), a.optional(1), a.view(2), a.view(3), a.integer(4), a.integer(5), a.number(6)});
}

napi_value vocab_stats(Args& a) {
  return launch(a, VocabStats{a.view(0), a.view(1), a.view(2), a.integer(3), a.integer(4), a.integer(5), a.integer(6)});
}
napi_value vocab_cross_entropy(Args& a) {
  return launch(a, VocabCrossEntropy{a.view(0), a.optional(1), a.view(2), a.view(3), a.view(4), a.integer(5), a.integer(6), a.integer(7),
                                    a.integer(8), a.integer(9), a.integer(10), a.number(11), a.boolean(12)});
}

napi_value adamw(Args& a) {
  return launch(a, AdamW{a.view(0), a.view(1), a.view(2), a.view(3), a.optional(4), a.optional(5), a.optional(6), a.number(7), a.number(8),
                        a.number(9), a.number(10), a.number(11), a.integer(12)});
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

}  // namespace

void register_ops(Napi::Object exports) {
  define<op_names>(exports, "opNames");
  define<fill>(exports, "fill");
  define<copy>(exports, "copy");
  define<copy_rows>(exports, "copyRows");
  define<add>(exports, "add");
  define<scale>(exports, "scale");
  define<sum_squares>(exports, "sumSquares");
  define<clip_factor>(exports, "clipFactor");
  define<random_fill>(exports, "randomFill");
  define<embedding_forward>(exports, "embeddingForward");
  define<embedding_backward>(exports, "embeddingBackward");
  define<linear_forward>(exports, "linearForward");
  define<linear_backward_input>(exports, "linearBackwardInput");
  define<linear_backward_weight>(exports, "linearBackwardWeight");
  define<rms_norm_forward>(exports, "rmsNormForward");
  define<rms_norm_backward>(exports, "rmsNormBackward");
  define<layer_norm_forward>(exports, "layerNormForward");
  define<layer_norm_backward>(exports, "layerNormBackward");
  define<rope_table>(exports, "ropeTable");
  define<rope>(exports, "rope");
  define<split_qkv>(exports, "splitQkv");
  define<merge_qkv>(exports, "mergeQkv");
  define<attention_forward>(exports, "attentionForward");
  define<attention_backward>(exports, "attentionBackward");
  define<swiglu_forward>(exports, "swigluForward");
  define<swiglu_backward>(exports, "swigluBackward");
  define<gelu_forward>(exports, "geluForward");
  define<gelu_backward>(exports, "geluBackward");
  define<routing_forward>(exports, "routingForward");
  define<routing_backward>(exports, "routingBackward");
  define<experts_forward>(exports, "expertsForward");
  define<experts_backward>(exports, "expertsBackward");
  define<balancing_loss_forward>(exports, "balancingLossForward");
  define<balancing_loss_backward>(exports, "balancingLossBackward");
  define<linear_cross_entropy>(exports, "linearCrossEntropy");
  define<cross_entropy>(exports, "crossEntropy");
  define<vocab_stats>(exports, "vocabStats");
  define<vocab_cross_entropy>(exports, "vocabCrossEntropy");
  define<adamw>(exports, "adamw");
}

}  // namespace rz::binding
