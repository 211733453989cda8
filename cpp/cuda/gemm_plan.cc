#include "cuda/gemm_plan.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <tuple>
#include <vector>

#include "core/settings.h"
#include "cuda/check.h"

namespace rz::cuda {

void check_lt(int status, const char* op, const char* call) {
  if (status != 0) fail("ERR_CUDA", "[", op, "] ", call, " of cuBLASLt ", cublaslt().report.version, " returned ", status);
}

const CublasLt& cublaslt_for(const char* op) {
  const CublasLt& lt = cublaslt();
  if (!lt.report.usable()) fail("ERR_CUDA_UNAVAILABLE", "[", op, "] GEMMs need cuBLASLt. ", lt.report.explain());
  return lt;
}

// One handle for each device and environment would do; one for each thread is as good, and needs no lock.
lt::Handle cublaslt_handle(const char* op) {
  static thread_local lt::Handle handle = nullptr;
  if (!handle) check_lt(cublaslt_for(op).Create(&handle), op, "cublasLtCreate");
  return handle;
}

GemmPlan::~GemmPlan() {
  const CublasLt& library = cublaslt();
  if (desc) library.MatmulDescDestroy(desc);
  for (lt::MatrixLayout layout : {a, b, c})
    if (layout) library.MatrixLayoutDestroy(layout);
}

int64_t row_class(int64_t rows) {
  if (rows <= 128) return rows;
  const int64_t step = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(rows - 1))) / 8;
  return (rows + step - 1) / step * step;
}

GemmRequest GemmRequest::with_rows(int64_t rows) const {
  GemmRequest other = *this;
  (a.transposed ? other.k : other.m) = rows;
  return other;
}

namespace {

constexpr size_t kWorkspaceBytes = size_t{32} << 20;  // what cuBLASLt asks for on Hopper
constexpr size_t kMaxPlans = 1024;                    // for row counts that come once

int type_of(DType t) {
  return t == DType::Float32 ? lt::kReal32F : t == DType::BFloat16 ? lt::kReal16BF : lt::kReal16F;
}

// The largest power of two, up to 16, that divides the address: algorithms differ in what they ask.
uint32_t alignment_of(const void* data) {
  auto address = reinterpret_cast<uintptr_t>(data) | 16;
  return static_cast<uint32_t>(address & ~(address - 1));
}

auto key_of(const GemmRequest& r, const Context& context) {
  const KernelChoices& choices = context.kernels;
  const void* onto = r.onto ? r.onto : r.c.data;
  return std::tuple(context.device(), choices.gemm_proposal, choices.gemm_trials, r.m, r.n, r.k, r.a.view.dtype, r.c.dtype, r.a.transposed, r.b.transposed,
                    r.bias ? alignment_of(r.bias) : 0, r.tf32, alignment_of(r.a.view.data), alignment_of(r.b.view.data), alignment_of(r.c.data),
                    alignment_of(onto));
}
using Key = decltype(key_of(std::declval<GemmRequest>(), std::declval<Context>()));

// What is taken for all row counts of a class.
struct Choice {
  lt::Algo algo{};
  bool adds_bias = false;
  bool settled = false;  // not to be timed any more
};

void set(const GemmPlan& plan, const char* op, int attribute, const auto& value) {
  check_lt(cublaslt().MatmulDescSetAttribute(plan.desc, attribute, &value, sizeof value), op, "cublasLtMatmulDescSetAttribute");
}

void set_bias(const GemmPlan& plan, const GemmRequest& r, bool adds) {
  set(plan, r.op, lt::kEpilogue, static_cast<int>(adds ? lt::kEpilogueBias : lt::kEpilogueDefault));
  if (adds) set(plan, r.op, lt::kBiasPointer, r.bias);  // what is chosen may depend on there being one
}

// Column-major, c is cᵀ (n, m) = bᵀ aᵀ: their first operand is our b.
std::unique_ptr<GemmPlan> describe(const GemmRequest& r) {
  const CublasLt& lib = cublaslt_for(r.op);
  auto plan = std::make_unique<GemmPlan>();
  const int compute = r.tf32 ? lt::kCompute32FFastTF32 : lt::kCompute32F;
  check_lt(lib.MatmulDescCreate(&plan->desc, compute, lt::kReal32F), r.op, "cublasLtMatmulDescCreate");
  set(*plan, r.op, lt::kTransA, static_cast<int>(r.b.transposed));
  set(*plan, r.op, lt::kTransB, static_cast<int>(r.a.transposed));
  auto layout = [&](lt::MatrixLayout* to, DType t, int64_t rows, int64_t columns) {
    check_lt(lib.MatrixLayoutCreate(to, type_of(t), static_cast<uint64_t>(columns), static_cast<uint64_t>(rows), columns), r.op,
             "cublasLtMatrixLayoutCreate");
  };
  r.b.transposed ? layout(&plan->a, r.b.view.dtype, r.n, r.k) : layout(&plan->a, r.b.view.dtype, r.k, r.n);
  r.a.transposed ? layout(&plan->b, r.a.view.dtype, r.k, r.m) : layout(&plan->b, r.a.view.dtype, r.m, r.k);
  layout(&plan->c, r.c.dtype, r.m, r.n);
  return plan;
}

// The library's first proposals for a plan's descriptors, at most `wanted`.
std::vector<lt::HeuristicResult> proposals(const GemmRequest& r, const GemmPlan& plan, int wanted, int& status) {
  const CublasLt& lib = cublaslt();
  lt::Preference preference;
  check_lt(lib.MatmulPreferenceCreate(&preference), r.op, "cublasLtMatmulPreferenceCreate");
  std::unique_ptr<void, int (*)(void*)> destroyed(preference, lib.MatmulPreferenceDestroy);
  auto prefer = [&](int attribute, const auto& value) {
    check_lt(lib.MatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value), r.op, "cublasLtMatmulPreferenceSetAttribute");
  };
  prefer(lt::kMaxWorkspaceBytes, kWorkspaceBytes);
  prefer(lt::kMinAlignmentA, alignment_of(r.b.view.data));
  prefer(lt::kMinAlignmentB, alignment_of(r.a.view.data));
  prefer(lt::kMinAlignmentC, alignment_of(r.onto ? r.onto : r.c.data));
  prefer(lt::kMinAlignmentD, alignment_of(r.c.data));
  std::vector<lt::HeuristicResult> results(static_cast<size_t>(wanted));
  int found = 0;
  status = lib.MatmulAlgoGetHeuristic(cublaslt_handle(r.op), plan.desc, plan.a, plan.b, plan.c, plan.c, preference, wanted, results.data(), &found);
  results.resize(status == 0 ? static_cast<size_t>(found) : 0);
  std::erase_if(results, [](const lt::HeuristicResult& result) { return result.state != 0; });
  return results;
}

// Whether the algorithm does for the plan; then it is the plan's.
bool take(const GemmRequest& r, GemmPlan& plan, const Choice& choice) {
  if (r.bias) set_bias(plan, r, choice.adds_bias);
  lt::HeuristicResult result{};
  const int status = cublaslt().MatmulAlgoCheck(cublaslt_handle(r.op), plan.desc, plan.a, plan.b, plan.c, plan.c, &choice.algo, &result);
  if (status != 0 || result.state != 0 || result.workspace_bytes > kWorkspaceBytes) return false;
  plan.algo = choice.algo;
  plan.workspace = result.workspace_bytes;
  plan.adds_bias = choice.adds_bias;
  return true;
}

// Milliseconds of the plan's GEMM, the shortest of a few.
float time_of(const GemmRequest& r, const GemmPlan& plan, CudaStream& stream) {
  Context& context = stream.context();
  const EventBox before = context.timed_event(), after = context.timed_event();
  float least = INFINITY;
  for (int run = 0; run < 4; ++run) {
    check(cudaEventRecord(before.get(), stream.handle()), r.op);
    multiply(r, plan, stream);
    check(cudaEventRecord(after.get(), stream.handle()), r.op);
    check(cudaEventSynchronize(after.get()), r.op);
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, before.get(), after.get()), r.op);
    if (run > 0) least = std::min(least, milliseconds);  // the first loads the kernel
  }
  return least;
}

// `plan`: of the shape that is wanted, on which proposals are timed.
Choice choose(const GemmRequest& r, GemmPlan& plan, CudaStream& stream) {
  const KernelChoices& choices = stream.context().kernels;
  const bool large = static_cast<double>(r.m) * static_cast<double>(r.n) * static_cast<double>(r.k) >= static_cast<double>(choices.gemm_least_timed);
  const bool times = large && choices.gemm_trials > 1 && choices.gemm_proposal == 0, repeats = r.onto != r.c.data;
  const int trials = times && repeats ? choices.gemm_trials : 1;
  const GemmRequest largest = r.with_rows(row_class(r.rows()));
  const std::unique_ptr<GemmPlan> asked = describe(largest);
  int status = 0;
  for (const bool adds_bias : {true, false}) {
    if (adds_bias && !r.bias) continue;
    if (r.bias) set_bias(*asked, r, adds_bias);
    const auto found = proposals(largest, *asked, std::max(trials, choices.gemm_proposal + 1), status);
    if (found.empty()) continue;
    Choice best{found[static_cast<size_t>(std::clamp(static_cast<int>(found.size()) - 1, 0, choices.gemm_proposal))].algo, adds_bias, repeats || !times};
    float least = INFINITY;
    for (const lt::HeuristicResult& result : found) {
      const Choice tried{result.algo, adds_bias, true};
      if (trials == 1 || found.size() == 1 || !take(r, plan, tried)) continue;
      if (const float time = time_of(r, plan, stream); time < least) least = time, best = tried;
    }
    return best;
  }
  fail("ERR_CUDA", "[", r.op, "] cuBLASLt ", cublaslt().report.version, " has no algorithm for a GEMM of (", r.m, ", ", r.k, ") and (", r.k, ", ", r.n,
       ") of ", name_of(r.a.view.dtype), " to ", name_of(r.c.dtype), " at addresses aligned to ", alignment_of(r.a.view.data), ", ",
       alignment_of(r.b.view.data), " and ", alignment_of(r.c.data), " bytes (status ", status, ")");
}

}  // namespace

GemmPlan& gemm_plan(const GemmRequest& r, CudaStream& stream) {
  static thread_local std::map<Key, std::unique_ptr<GemmPlan>> plans;
  static thread_local std::map<Key, Choice> choices;  // by the class of the row count
  const Context& context = stream.context();
  if (plans.size() >= kMaxPlans) plans.clear();
  std::unique_ptr<GemmPlan>& plan = plans[key_of(r, context)];
  if (plan && (plan->settled || r.onto == r.c.data)) return *plan;
  context.await_host();  // it may bring a kernel that is not loaded yet
  auto fresh = describe(r);
  Choice& choice = choices[key_of(r.with_rows(row_class(r.rows())), context)];
  const bool known = choice.settled && take(r, *fresh, choice);
  if (!known) {
    choice = choose(r, *fresh, stream);
    if (!take(r, *fresh, choice)) {  // for this row count alone
      fresh = describe(r);
      int status = 0;
      if (r.bias) set_bias(*fresh, r, choice.adds_bias);
      const auto found = proposals(r, *fresh, 1, status);
      if (found.empty() || !take(r, *fresh, {found[0].algo, choice.adds_bias, false})) fail("ERR_CUDA", "[", r.op, "] cuBLASLt has no algorithm for ", r.rows(), " rows (status ", status, ")");
    }
  }
  fresh->settled = choice.settled;
  plan = std::move(fresh);
  return *plan;
}

void multiply(const GemmRequest& r, const GemmPlan& plan, CudaStream& stream) {
  std::shared_ptr<Storage> workspace;
  if (plan.workspace > 0) workspace = stream.scratch(plan.workspace);
  const float alpha = 1.0f, beta = r.onto ? 1.0f : 0.0f;
  check_lt(cublaslt().Matmul(cublaslt_handle(r.op), plan.desc, &alpha, r.b.view.data, plan.a, r.a.view.data, plan.b, &beta, r.onto ? r.onto : r.c.data,
                             plan.c, r.c.data, plan.c, &plan.algo, workspace ? workspace->data() : nullptr, plan.workspace, stream.handle()),
           r.op, "cublasLtMatmul");
}

}  // namespace rz::cuda
