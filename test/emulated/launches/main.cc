// Enqueues every op in every dtype, at sizes of models and at the largest that are meant to work, on the runtime of runtime.cc.
#include <initializer_list>

#include "cuda/allocator.h"
#include "cuda/context.h"
#include "cuda/stream.h"
#include "ops/all.h"

using namespace rz;

namespace {

constexpr std::initializer_list<DType> kFloating = {DType::Float32, DType::BFloat16, DType::Float16};
cuda::CudaStream* stream;

template <class Op>
void enqueue(const Op& op) {
  op.check();
  stream->enqueue(Op::name, [&] { cuda::run(op, *stream); });
}

// An operand: an address that nobody reads. `skew`: elements behind an aligned one.
View tensor(DType t, int64_t numel, int64_t skew = 0) {
  static auto address = uintptr_t{1} << 45;
  const uintptr_t at = address + static_cast<uintptr_t>(skew * size_of(t));
  address += static_cast<uintptr_t>(numel * size_of(t) + 1024) / 512 * 512;
  return {reinterpret_cast<void*>(at), t, numel};
}
View f32(int64_t numel) { return tensor(DType::Float32, numel); }
View i32(int64_t numel) { return tensor(DType::Int32, numel); }
View i64(int64_t numel) { return tensor(DType::Int64, numel); }

constexpr int64_t kManyRows = int64_t{1} << 20;      // of a batch
constexpr int64_t kManyElements = int64_t{1} << 33;  // of a flat buffer

void elementwise(int64_t n) {
  for (DType t : {DType::Float32, DType::BFloat16, DType::Float16, DType::Int64, DType::Int32, DType::UInt8}) enqueue(Fill{tensor(t, n), 1});
  for (DType a : kFloating) {
    enqueue(SumSquares{f32(1), tensor(a, n), false});
    enqueue(RandomFill{tensor(a, n), 1, 2, 3, true, 0, 1});
    enqueue(RandomFill{tensor(a, n), 1, 2, 3, false, 0, 1});
    enqueue(SwigluForward{tensor(a, n), tensor(a, n), tensor(a, n)});
    enqueue(SwigluBackward{tensor(a, n), tensor(a, n), tensor(a, n), tensor(a, n), tensor(a, n)});
    enqueue(Dropout{tensor(a, n), tensor(a, n), i64(n / 1024), 1024, 0, .1f, 1, {2}});
    enqueue(PackedSwigluForward{tensor(a, n), tensor(a, 2 * n), n / 64, 64});
    enqueue(PackedSwigluBackward{tensor(a, 2 * n), tensor(a, n), tensor(a, 2 * n), n / 64, 64});
    for (int64_t scheme : {0, 1, 2})
      enqueue(DequantizeWeight{tensor(a, n), tensor(DType::UInt8, QuantizedLayout(scheme, n, 1, 64).bytes), scheme, 1, 64});
    for (bool tanh : {false, true}) {
      enqueue(GeluForward{tensor(a, n), tensor(a, n), tanh});
      enqueue(GeluBackward{tensor(a, n), tensor(a, n), tensor(a, n), tanh});
    }
    for (DType b : kFloating) {
      enqueue(Copy{tensor(a, n), tensor(b, n)});
      enqueue(CopyRows{tensor(a, n), tensor(b, n), n / 64, 64, 0, 64, 0, 64});
      enqueue(CopyRows{tensor(a, n), tensor(b, n), 2, n / 2, 0, n / 2, 0, n / 2});
      enqueue(Scale{tensor(a, n), tensor(b, n), f32(1), 2, true});
      for (DType c : kFloating) {
        enqueue(Add{tensor(a, n), tensor(b, n), tensor(c, n)});
        if (a == DType::Float32) enqueue(AdamW{tensor(a, n), tensor(b, n), f32(n), f32(n), i64(6), f32(1), tensor(c, n), 1e-3, .9, .99, 1e-8, .1, 1});
        if (a == DType::Float32) enqueue(Sgd{tensor(a, n), tensor(b, n), f32(n), i64(6), f32(1), tensor(c, n), 1e-3, .9, 0, .1, true, 1});
      }
      enqueue(Adamw8bit{tensor(a, n), tensor(b, n), tensor(DType::UInt8, n), tensor(DType::UInt8, n), f32(n / 256), f32(n / 256), i64(n / 128),
                        f32(256), f32(256), i64(2), f32(2), f32(1), View{}, 1e-3, .9, .99, 1e-8, .1, 1});
      for (DType c : kFloating)
        if (a == DType::Float32)
          enqueue(Adamw8bit{tensor(a, n), tensor(b, n), tensor(DType::UInt8, n), tensor(DType::UInt8, n), f32(n / 256), f32(n / 256), i64(n / 128),
                            f32(256), f32(256), i64(2), f32(2), f32(1), tensor(c, n), 1e-3, .9, .99, 1e-8, .1, 1});
      enqueue(Adamw8bitPeaks{f32(2), i64(2), tensor(b, n), tensor(DType::UInt8, n), tensor(DType::UInt8, n), f32(n / 256), f32(n / 256), i64(n / 128),
                             f32(256), f32(256), f32(1), .9, .99});
      enqueue(Sgd{tensor(a, n), tensor(b, n), f32(n), View{}, View{}, View{}, 1e-3, .9, 0, .1, true, 1});
      enqueue(AdamW{tensor(a, n), tensor(b, n), f32(n), f32(n), View{}, View{}, View{}, 1e-3, .9, .99, 1e-8, .1, 1});
    }
  }
  enqueue(ClipFactor{f32(1), f32(1), f32(1), 1});
}

void adafactor(int64_t rows, int64_t columns) {
  const int64_t n = rows * columns;
  enqueue(AdafactorFactors{f32(rows), f32(columns), f32(1), f32(rows), f32(columns), .1});
  for (DType a : kFloating)
    for (DType b : kFloating) {
      enqueue(AdafactorSums{f32(rows), f32(columns), tensor(b, n), f32(1), 0, columns, 0, 0});
      enqueue(AdafactorNorm{f32(1), tensor(b, n), f32(1), View{}, f32(rows), f32(columns), f32(1), 0, columns, 0, 0, 1e-7, .1});
      enqueue(AdafactorNorm{f32(1), tensor(b, n), f32(1), f32(n), View{}, View{}, View{}, 0, n, 0, 0, 1e-7, .1});
      enqueue(AdafactorStep{tensor(a, n), tensor(b, n), f32(1), View{}, View{}, f32(rows), f32(columns), f32(1), f32(1), f32(1), 0, columns, 0, 0,
                            n, 1e-3, 1e-3, 1e-7, 1e-3, 1, .1});
      for (DType c : kFloating)
        if (a == DType::Float32)
          enqueue(AdafactorStep{tensor(a, n), tensor(b, n), f32(1), tensor(c, n), View{}, f32(rows), f32(columns), f32(1), f32(1), f32(1), 0, columns,
                                0, 0, n, 1e-3, 1e-3, 1e-7, 1e-3, 1, .1});
    }
}

void norms(int64_t rows, int64_t dim) {
  const int64_t n = rows * dim;
  for (DType t : kFloating) {
    enqueue(RmsNormForward{tensor(t, n), f32(rows), tensor(t, n), tensor(t, dim), rows, dim, 1e-5f});
    enqueue(LayerNormForward{tensor(t, n), f32(rows), f32(rows), tensor(t, n), tensor(t, dim), tensor(t, dim), rows, dim, 1e-5f});
    for (View update : {View{}, tensor(t, n)}) enqueue(RowSquares{f32(rows), tensor(t, n), update, rows, dim});
    for (DType m : kFloating) {
      enqueue(DoraForward{tensor(t, n), tensor(t, n), tensor(m, dim), f32(dim), rows, dim});
      enqueue(DoraBackward{tensor(m, dim), tensor(t, n), tensor(t, n), f32(dim), rows, dim, false});
    }
    for (View dw : {View{}, f32(dim), tensor(t, dim)}) {
      enqueue(RmsNormBackward{tensor(t, n), dw, tensor(t, n), tensor(t, n), tensor(t, dim), f32(rows), tensor(t, n), rows, dim, false});
      enqueue(LayerNormBackward{tensor(t, n), dw, dw, tensor(t, n), tensor(t, n), tensor(t, dim), f32(rows), f32(rows), rows, dim, false, false});
    }
  }
}

void heads(int64_t rows, int64_t heads, int64_t dim, int64_t skew) {
  const int64_t n = rows * heads * dim;
  for (DType t : kFloating) {
    enqueue(Rope{tensor(t, n), tensor(t, n), f32(rows * (dim / 2)), f32(rows * (dim / 2)), rows, heads, dim, dim / 2 * 2, false});
    const View table = f32(rows * (dim / 2)), narrow = tensor(t, n / 8);
    enqueue(SplitRope{tensor(t, n, skew), narrow, narrow, tensor(t, n + n / 4), table, table, rows, heads, heads / 8, dim, dim / 2 * 2});
    enqueue(MergeRope{tensor(t, n + n / 4), tensor(t, n, skew), narrow, narrow, table, table, rows, heads, heads / 8, dim, dim / 2 * 2});
    enqueue(SplitQkv{tensor(t, n, skew), tensor(t, n), tensor(t, n), tensor(t, 3 * n), rows, heads, dim});
    enqueue(MergeQkv{tensor(t, 3 * n), tensor(t, n, skew), tensor(t, n), tensor(t, n), rows, heads, dim});
  }
  enqueue(RopeTable{f32(rows * (dim / 2)), f32(rows * (dim / 2)), i64(rows), f32(dim / 2), rows, dim / 2, 1});
}

void attention(int64_t rows, int64_t sequences, int64_t heads, int64_t kv_heads, int64_t dim, int64_t skew) {
  const int64_t wide = rows * heads * dim, narrow = rows * kv_heads * dim;
  for (AttentionKernels kernels : {AttentionKernels::Hopper, AttentionKernels::Mma}) {
    stream->context().kernels.attention = kernels;
    for (DType t : kFloating) {
      auto q = [&] { return tensor(t, wide, skew); };
      auto k = [&] { return tensor(t, narrow); };
      const View cu = i32(sequences + 1);
      enqueue(AttentionForward{q(), f32(rows * heads), q(), k(), k(), cu, cu, rows, rows, sequences, heads, kv_heads, dim, 0, 1});
      enqueue(AttentionBackward{q(), k(), k(), q(), q(), q(), k(), k(), f32(rows * heads), cu, rows, sequences, heads, kv_heads, dim, 0, 1});
    }
  }
}

void embedding(int64_t rows, int64_t vocab, int64_t dim, int64_t skew) {
  for (DType t : kFloating) {
    enqueue(EmbeddingForward{tensor(t, rows * dim, skew), i64(rows), tensor(t, vocab * dim), rows, vocab, dim, 0});
    for (DType d : kFloating)
      enqueue(EmbeddingBackward{tensor(d, vocab * dim), i64(rows), tensor(t, rows * dim, skew), rows, vocab, dim, 0, false});
  }
}

void losses(int64_t rows, int64_t vocab, int64_t dim) {
  enqueue(CrossEntropy{f32(1), f32(rows * vocab), f32(rows * vocab), i64(rows), rows, vocab, 0});
  enqueue(VocabStats{f32(rows * 3), f32(rows * vocab), i64(rows), rows, vocab, 0, vocab});
  for (DType t : kFloating)
    for (bool narrow : {false, true}) {
      stream->context().kernels.narrow_logits = narrow;
      enqueue(LinearCrossEntropy{f32(1), tensor(t, rows * dim), f32(vocab * dim), tensor(t, rows * dim), tensor(t, vocab * dim), i64(rows), rows, dim,
                                 vocab, 0, false});
    }
  for (DType t : kFloating)
    enqueue(VocabCrossEntropy{f32(1), tensor(t, rows * vocab), f32(rows * vocab), f32(2 * rows * 3), i64(rows), 2, 0, rows, vocab, 0, vocab, 0, false});
}

void linear(int64_t rows, int64_t in, int64_t out) {
  for (DType t : kFloating)
    for (DType y : kFloating)
      for (DType b : kFloating) {
        enqueue(LinearForward{tensor(y, rows * out), tensor(t, rows * in), tensor(t, out * in), tensor(b, out), tensor(y, rows * out), rows, in, out});
        enqueue(LinearBackwardWeight{tensor(y, out * in), tensor(y, out), tensor(t, rows * out), tensor(t, rows * in), rows, in, out, false});
        enqueue(LinearBackwardInput{tensor(t, rows * in), tensor(t, rows * out), tensor(t, out * in), tensor(t, rows * in), rows, in, out});
      }
}

void experts(int64_t rows, int64_t count, int64_t top_k, int64_t dim, int64_t inner) {
  const int64_t pairs = rows * top_k;
  const View chosen = i32(pairs), order = i32(pairs), offsets = i32(count + 1);
  for (DType t : kFloating) {
    enqueue(RoutingForward{f32(pairs), chosen, order, offsets, f32(rows * count), f32(2 * count), tensor(t, rows * count), rows, count, top_k, rows});
    enqueue(RoutingBackward{tensor(t, rows * count), f32(pairs), f32(pairs), chosen, f32(rows * count), f32(count), rows, count, top_k, rows, 1});
    const ExpertViews w(static_cast<size_t>(count), tensor(t, inner * dim));
    enqueue(ExpertsForward{tensor(t, rows * dim), tensor(t, pairs * inner), tensor(t, pairs * inner), tensor(t, rows * dim), f32(pairs), order, offsets, w,
                           w, w, rows, dim, inner, top_k});
    for (DType d : {t, DType::Float32}) {
      const ExpertGradients dw(static_cast<size_t>(count), tensor(d, inner * dim));
      enqueue(ExpertsBackward{tensor(t, rows * dim), f32(pairs), dw, dw, dw, tensor(t, rows * dim), tensor(t, rows * dim), tensor(t, pairs * inner),
                              tensor(t, pairs * inner), f32(pairs), order, offsets, w, w, w, std::vector<bool>(static_cast<size_t>(3 * count)), rows, dim,
                              inner, top_k});
    }
  }
  enqueue(BalancingLossForward{f32(1), f32(1), f32(32 * 2 * count), 32, count, rows, 1});
  enqueue(BalancingLossBackward{f32(count), f32(1), f32(32 * 2 * count), 32, count, rows, 1});
}

}  // namespace

int main() {
  cuda::Context context(0);
  const std::vector<std::unique_ptr<Stream>> none;
  auto allocator = std::make_shared<cuda::CudaAllocator>(context, &none);
  cuda::CudaStream compute(0, "compute", context, *allocator, nullptr);
  stream = &compute;
  for (int64_t n : {int64_t{1} << 10, kManyElements}) elementwise(n);
  adafactor(1 << 10, 1 << 10);
  adafactor(kManyRows, 1 << 13);
  for (int64_t dim : {8, 512, 513, 4096, 8192, 8193, 16384})
    for (int64_t rows : {int64_t{1}, kManyRows}) norms(rows, dim);
  for (int64_t dim : {64, 96, 128, 256, 33})
    for (int64_t skew : {0, 1}) {
      heads(kManyRows, 64, dim, skew);
      attention(kManyRows, 1, 64, 8, dim, skew);
      attention(4096, 4096, 32, 32, dim, skew);
    }
  for (int64_t dim : {17, 4096, 16384})
    for (int64_t skew : {0, 1}) embedding(kManyRows, 256000, dim, skew);
  for (int64_t vocab : {32000, 50257, 256000}) losses(kManyRows / 64, vocab, 4096);
  for (int64_t in : {4096, 53}) linear(kManyRows, in, 28672);
  experts(kManyRows / 4, 8, 2, 4096, 14336);
  experts(kManyRows / 4, 256, 8, 7168, 2048);
  experts(1, 512, 10, 2048, 512);
}
