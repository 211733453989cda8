#include "cuda/matmul.h"

#include "core/settings.h"
#include "cuda/gemm_plan.h"
#include "cuda/grid.h"
#include "cuda/launch.h"
#include "cuda/vec.h"

namespace rz::cuda {
namespace {

constexpr int kThreads = 256;

// c[r][i] += bias[i] where the library does not add it.
template <class C, class B>
__global__ void add_bias(C* c, const B* bias, int64_t numel, int64_t columns) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < numel; i += stride)
    c[i] = narrow<C>(widen(c[i]) + widen(bias[i % columns]));
}

void apply_bias(const View& c, const View& bias, int64_t columns, CudaStream& stream) {
  with_floating(c.dtype, [&](auto x) {
    with_floating(bias.dtype, [&](auto y) {
      using C = decltype(x);
      using B = decltype(y);
      launch(add_bias<C, B>, blocks_for(c.numel, kThreads, stream), kThreads, 0, stream, c.as<C>(), bias.as<B>(), c.numel, columns);
    });
  });
}

}  // namespace

void matmul(const char* op, int64_t m, int64_t n, int64_t k, Operand a, Operand b, const View& c, const View& bias, const View& onto,
            CudaStream& stream) {
  if (m == 0 || n == 0) return;
  if (k == 0) {
    const auto bytes = static_cast<size_t>(c.numel * size_of(c.dtype));
    if (!onto) check(cudaMemsetAsync(c.data, 0, bytes, stream.handle()), op);
    else if (onto.data != c.data) check(cudaMemcpyAsync(c.data, onto.data, bytes, cudaMemcpyDeviceToDevice, stream.handle()), op);
    if (bias) apply_bias(c, bias, n, stream);
    return;
  }
  const bool fits = bias && bias.dtype == c.dtype && a.view.dtype == c.dtype;
  const bool tf32 = a.view.dtype == DType::Float32 && settings().tf32;
  const GemmRequest request{op, m, n, k, a, b, c, onto ? onto.data : nullptr, fits ? bias.data : nullptr, tf32};
  const GemmPlan& plan = gemm_plan(request, stream);
  if (plan.adds_bias)
    check_lt(cublaslt().MatmulDescSetAttribute(plan.desc, lt::kBiasPointer, &bias.data, sizeof bias.data), op, "cublasLtMatmulDescSetAttribute");
  multiply(request, plan, stream);
  if (bias && !plan.adds_bias) apply_bias(c, bias, n, stream);
}

}  // namespace rz::cuda
