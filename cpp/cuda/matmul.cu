#include "cuda/matmul.h"

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>

#include "core/settings.h"
#include "cuda/cublaslt.h"
#include "cuda/grid.h"
#include "cuda/launch.h"
#include "cuda/vec.h"

namespace rz::cuda {
namespace {

constexpr size_t kWorkspaceBytes = size_t{32} << 20;  // what cuBLASLt asks for on Hopper
constexpr size_t kMaxPlans = 1024;                    // packed batches bring new row counts every step
constexpr int kThreads = 256;

void check_lt(int status, const char* op, const char* call) {
  if (status != 0) fail("ERR_CUDA", "[", op, "] ", call, " of cuBLASLt ", cublaslt().report.version, " returned ", status);
}

const CublasLt& library(const char* op) {
  const CublasLt& lt = cublaslt();
  if (!lt.report.usable()) fail("ERR_CUDA_UNAVAILABLE", "[", op, "] GEMMs need cuBLASLt. ", lt.report.explain());
  return lt;
}

int type_of(DType t) {
  return t == DType::Float32 ? lt::kReal32F : t == DType::BFloat16 ? lt::kReal16BF : lt::kReal16F;
}

// One handle for each device and environment would do; one for each thread is as good, and needs no lock.
lt::Handle handle_of_thread(const char* op) {
  static thread_local lt::Handle handle = nullptr;
  if (!handle) check_lt(library(op).Create(&handle), op, "cublasLtCreate");
  return handle;
}

// A GEMM of one shape: its descriptors and the algorithm that the library chose.
struct Plan {
  lt::MatmulDesc desc = nullptr;
  lt::MatrixLayout a = nullptr, b = nullptr, c = nullptr;
  lt::Algo algo{};
  size_t workspace = 0;
  bool adds_bias = false;  // the library does
  ~Plan() {
    const CublasLt& library = cublaslt();
    if (desc) library.MatmulDescDestroy(desc);
    for (lt::MatrixLayout layout : {a, b, c})
      if (layout) library.MatrixLayoutDestroy(layout);
  }
};

// The largest power of two, up to 16, that divides the address: algorithms differ in what they ask.
uint32_t alignment_of(const void* data) {
  auto address = reinterpret_cast<uintptr_t>(data) | 16;
  return static_cast<uint32_t>(address & ~(address - 1));
}

struct Request {
  const char* op;
  int64_t m, n, k;
  Operand a, b;
  const View& c;
  const void* onto;  // c itself where nothing is added
  const void* bias;  // null: none, or none that the library can add
  bool tf32;
  int proposal;
  auto key(int device) const {
    return std::tuple(device, proposal, m, n, k, a.view.dtype, c.dtype, a.transposed, b.transposed, bias ? alignment_of(bias) : 0, tf32,
                      alignment_of(a.view.data), alignment_of(b.view.data), alignment_of(c.data), alignment_of(onto));
  }
};

// Column-major, c is cᵀ (n, m) = bᵀ aᵀ: their first operand is our b.
std::unique_ptr<Plan> make_plan(const Request& r) {
  const CublasLt& lib = library(r.op);
  auto plan = std::make_unique<Plan>();
  const int compute = r.tf32 ? lt::kCompute32FFastTF32 : lt::kCompute32F;
  check_lt(lib.MatmulDescCreate(&plan->desc, compute, lt::kReal32F), r.op, "cublasLtMatmulDescCreate");
  const int transpose_first = r.b.transposed, transpose_second = r.a.transposed;
  auto set = [&](int attribute, const auto& value) {
    check_lt(lib.MatmulDescSetAttribute(plan->desc, attribute, &value, sizeof value), r.op, "cublasLtMatmulDescSetAttribute");
  };
  set(lt::kTransA, transpose_first);
  set(lt::kTransB, transpose_second);
  auto layout = [&](lt::MatrixLayout* to, DType t, int64_t rows, int64_t columns) {
    check_lt(lib.MatrixLayoutCreate(to, type_of(t), static_cast<uint64_t>(columns), static_cast<uint64_t>(rows), columns), r.op,
             "cublasLtMatrixLayoutCreate");
  };
  r.b.transposed ? layout(&plan->a, r.b.view.dtype, r.n, r.k) : layout(&plan->a, r.b.view.dtype, r.k, r.n);
  r.a.transposed ? layout(&plan->b, r.a.view.dtype, r.k, r.m) : layout(&plan->b, r.a.view.dtype, r.m, r.k);
  layout(&plan->c, r.c.dtype, r.m, r.n);

  lt::Preference preference;
  check_lt(lib.MatmulPreferenceCreate(&preference), r.op, "cublasLtMatmulPreferenceCreate");
  std::unique_ptr<void, int (*)(void*)> destroyed(preference, lib.MatmulPreferenceDestroy);
  auto prefer = [&](int attribute, const auto& value) {
    check_lt(lib.MatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value), r.op, "cublasLtMatmulPreferenceSetAttribute");
  };
  prefer(lt::kMaxWorkspaceBytes, kWorkspaceBytes);
  prefer(lt::kMinAlignmentA, alignment_of(r.b.view.data));
  prefer(lt::kMinAlignmentB, alignment_of(r.a.view.data));
  prefer(lt::kMinAlignmentC, alignment_of(r.onto));
  prefer(lt::kMinAlignmentD, alignment_of(r.c.data));
  int status = 0;
  auto choose = [&] {
    lt::HeuristicResult results[KernelChoices::kMostProposals] = {};
    int found = 0;
    status = lib.MatmulAlgoGetHeuristic(handle_of_thread(r.op), plan->desc, plan->a, plan->b, plan->c, plan->c, preference, r.proposal + 1, results, &found);
    const lt::HeuristicResult& result = results[std::clamp(found - 1, 0, r.proposal)];
    plan->algo = result.algo;
    plan->workspace = result.workspace_bytes;
    return status == 0 && found > 0 && result.state == 0;
  };
  if (r.bias) {
    set(lt::kEpilogue, static_cast<int>(lt::kEpilogueBias));
    set(lt::kBiasPointer, r.bias);  // what is chosen may depend on there being one
    if ((plan->adds_bias = choose())) return plan;
    set(lt::kEpilogue, static_cast<int>(lt::kEpilogueDefault));
  }
  if (!choose())
    fail("ERR_CUDA", "[", r.op, "] cuBLASLt ", lib.report.version, " has no algorithm for a GEMM of (", r.m, ", ", r.k, ") and (", r.k, ", ",
         r.n, ") of ", name_of(r.a.view.dtype), " to ", name_of(r.c.dtype), " at addresses aligned to ", alignment_of(r.a.view.data), ", ",
         alignment_of(r.b.view.data), " and ", alignment_of(r.c.data), " bytes (status ", status, ")");
  return plan;
}

Plan& plan_for(const Request& r, const Context& context) {
  static thread_local std::map<decltype(r.key(0)), std::unique_ptr<Plan>> plans;
  if (plans.size() >= kMaxPlans) plans.clear();
  std::unique_ptr<Plan>& plan = plans[r.key(context.device())];
  if (!plan) {
    context.await_host();  // it may bring a kernel that is not loaded yet
    plan = make_plan(r);
  }
  return *plan;
}

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
  const void* added = onto ? onto.data : c.data;
  Plan& plan = plan_for({op, m, n, k, a, b, c, added, fits ? bias.data : nullptr, tf32, stream.context().kernels.gemm_proposal}, stream.context());
  if (plan.adds_bias)
    check_lt(library(op).MatmulDescSetAttribute(plan.desc, lt::kBiasPointer, &bias.data, sizeof bias.data), op, "cublasLtMatmulDescSetAttribute");
  std::shared_ptr<Storage> workspace;
  if (plan.workspace > 0) workspace = stream.scratch(plan.workspace);
  const float alpha = 1.0f, beta = onto ? 1.0f : 0.0f;
  check_lt(library(op).Matmul(handle_of_thread(op), plan.desc, &alpha, b.view.data, plan.a, a.view.data, plan.b, &beta, added, plan.c, c.data,
                              plan.c, &plan.algo, workspace ? workspace->data() : nullptr, plan.workspace, stream.handle()),
           op, "cublasLtMatmul");
  if (bias && !plan.adds_bias) apply_bias(c, bias, n, stream);
}

}  // namespace rz::cuda
