// In place of libcublasLt.so.13: the same calls, with a plain product. Column-major, as the real one.
#include "cuda/cublaslt.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "core/dtype.h"
#include "queues.h"

using namespace rz::cuda;

namespace {

constexpr size_t kWorkspace = 1024;
constexpr int kInvalidValue = 7, kNotSupported = 15;
constexpr int kProposals = 5;

// A line for each call, in the file that RANKZERO_EMULATED_GEMM_LOG names.
void log_call(const char* what, uint64_t a, uint64_t b, uint64_t c, int d) {
  const char* path = std::getenv("RANKZERO_EMULATED_GEMM_LOG");
  FILE* file = path ? std::fopen(path, "a") : nullptr;
  if (!file) return;
  std::fprintf(file, "%s %llu %llu %llu %d\n", what, static_cast<unsigned long long>(a), static_cast<unsigned long long>(b),
               static_cast<unsigned long long>(c), d);
  std::fclose(file);
}

int beta_of(const void* beta) { return *static_cast<const float*>(beta) != 0; }

struct Desc {
  int transpose_a = 0, transpose_b = 0, epilogue = lt::kEpilogueDefault;
  const void* bias = nullptr;
};
struct Layout {
  int type;
  uint64_t rows, columns;
  int64_t leading;
};

float read(int type, const void* data, int64_t i) {
  if (type == lt::kReal32F) return static_cast<const float*>(data)[i];
  if (type == lt::kReal16BF) return rz::to_float(static_cast<const rz::bf16*>(data)[i]);
  return rz::to_float(static_cast<const rz::f16*>(data)[i]);
}

void write(int type, void* data, int64_t i, float x) {
  if (type == lt::kReal32F) static_cast<float*>(data)[i] = x;
  else if (type == lt::kReal16BF) static_cast<rz::bf16*>(data)[i] = rz::to_bf16(x);
  else static_cast<rz::f16*>(data)[i] = rz::to_f16(x);
}

[[gnu::no_sanitize_address]] double dot(const float* a, const float* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

void multiply(const Desc& desc, float alpha, const void* a, const Layout& al, const void* b, const Layout& bl, float beta, const void* c,
              void* d, const Layout& cl) {
  const auto m = static_cast<int64_t>(cl.rows), n = static_cast<int64_t>(cl.columns);
  const auto k = static_cast<int64_t>(desc.transpose_a ? al.rows : al.columns);
  std::vector<float> rows(static_cast<size_t>(m * k)), columns(static_cast<size_t>(n * k));
  for (int64_t i = 0; i < m; ++i)
    for (int64_t p = 0; p < k; ++p) rows[i * k + p] = read(al.type, a, desc.transpose_a ? i * al.leading + p : p * al.leading + i);
  for (int64_t j = 0; j < n; ++j)
    for (int64_t p = 0; p < k; ++p) columns[j * k + p] = read(bl.type, b, desc.transpose_b ? p * bl.leading + j : j * bl.leading + p);
  for (int64_t j = 0; j < n; ++j)
    for (int64_t i = 0; i < m; ++i) {
      double out = alpha * dot(rows.data() + i * k, columns.data() + j * k, k);
      if (beta != 0) out += beta * read(cl.type, c, j * cl.leading + i);  // c is not read without it
      if (desc.epilogue == lt::kEpilogueBias) out += read(cl.type, desc.bias, i);
      write(cl.type, d, j * cl.leading + i, static_cast<float>(out));
    }
}

}  // namespace

extern "C" {

size_t cublasLtGetVersion() { return 130000; }
int cublasLtCreate(lt::Handle* handle) {
  if (!rz::emulator::wait_for_device("cublasLtCreate")) return kInvalidValue;
  static int one;
  *handle = &one;
  return 0;
}
int cublasLtMatmulDescCreate(lt::MatmulDesc* desc, int, int scale_type) {
  if (scale_type != lt::kReal32F) return kNotSupported;
  *desc = new Desc;
  return 0;
}
int cublasLtMatmulDescDestroy(lt::MatmulDesc desc) {
  delete static_cast<Desc*>(desc);
  return 0;
}
int cublasLtMatmulDescSetAttribute(lt::MatmulDesc desc, int attribute, const void* value, size_t bytes) {
  auto* d = static_cast<Desc*>(desc);
  void* to = attribute == lt::kTransA ? static_cast<void*>(&d->transpose_a)
             : attribute == lt::kTransB ? &d->transpose_b
             : attribute == lt::kEpilogue ? &d->epilogue
             : attribute == lt::kBiasPointer ? static_cast<void*>(&d->bias)
                                             : nullptr;
  if (!to || bytes != (attribute == lt::kBiasPointer ? 8u : 4u)) return kInvalidValue;
  std::memcpy(to, value, bytes);
  return 0;
}
int cublasLtMatrixLayoutCreate(lt::MatrixLayout* layout, int type, uint64_t rows, uint64_t columns, int64_t leading) {
  if (leading < static_cast<int64_t>(rows)) return kInvalidValue;
  *layout = new Layout{type, rows, columns, leading};
  return 0;
}
int cublasLtMatrixLayoutDestroy(lt::MatrixLayout layout) {
  delete static_cast<Layout*>(layout);
  return 0;
}
int cublasLtMatmulPreferenceCreate(lt::Preference* preference) {
  static int one;
  *preference = &one;
  return 0;
}
int cublasLtMatmulPreferenceDestroy(lt::Preference) { return 0; }
int cublasLtMatmulPreferenceSetAttribute(lt::Preference, int, const void*, size_t) { return 0; }

int cublasLtMatmulAlgoGetHeuristic(lt::Handle, lt::MatmulDesc desc, lt::MatrixLayout a, lt::MatrixLayout b, lt::MatrixLayout c,
                                   lt::MatrixLayout, lt::Preference, int wanted, lt::HeuristicResult* results, int* found) {
  auto *al = static_cast<Layout*>(a), *bl = static_cast<Layout*>(b), *cl = static_cast<Layout*>(c);
  auto* d = static_cast<Desc*>(desc);
  if (d->epilogue == lt::kEpilogueBias && std::getenv("RANKZERO_EMULATED_WITHOUT_EPILOGUES")) return kNotSupported;
  const uint64_t m = d->transpose_a ? al->columns : al->rows, k = d->transpose_a ? al->rows : al->columns;
  const uint64_t k_of_b = d->transpose_b ? bl->columns : bl->rows, n = d->transpose_b ? bl->rows : bl->columns;
  if (m != cl->rows || n != cl->columns || k != k_of_b) return kInvalidValue;
  log_call("proposals", m, n, k, wanted);
  *found = std::min(wanted, kProposals);
  for (int i = 0; i < *found; ++i) {
    results[i] = {};
    results[i].algo.data[0] = static_cast<uint64_t>(i);
    results[i].workspace_bytes = kWorkspace;
  }
  return 0;
}

int cublasLtMatmulAlgoCheck(lt::Handle, lt::MatmulDesc desc, lt::MatrixLayout, lt::MatrixLayout, lt::MatrixLayout, lt::MatrixLayout, const lt::Algo* algo,
                            lt::HeuristicResult* result) {
  if (static_cast<Desc*>(desc)->epilogue == lt::kEpilogueBias && std::getenv("RANKZERO_EMULATED_WITHOUT_EPILOGUES")) return kNotSupported;
  if (algo->data[0] >= static_cast<uint64_t>(kProposals)) return kInvalidValue;
  *result = {};
  result->algo = *algo;
  result->workspace_bytes = kWorkspace;
  return 0;
}

int cublasLtMatmul(lt::Handle, lt::MatmulDesc desc, const void* alpha, const void* a, lt::MatrixLayout al, const void* b, lt::MatrixLayout bl,
                   const void* beta, const void* c, lt::MatrixLayout, void* d, lt::MatrixLayout cl, const lt::Algo* algo, void* workspace,
                   size_t workspace_bytes, cudaStream_t stream) {
  if (workspace_bytes < kWorkspace || algo->data[0] >= static_cast<uint64_t>(kProposals)) return kInvalidValue;
  if (!rz::emulator::first_use(desc, "the first cublasLtMatmul of a shape")) return kInvalidValue;
  log_call("gemm", static_cast<Layout*>(cl)->rows, static_cast<Layout*>(cl)->columns, algo->data[0], beta_of(beta));
  rz::emulator::enqueue(stream, [desc = *static_cast<Desc*>(desc), al = *static_cast<Layout*>(al), bl = *static_cast<Layout*>(bl),
                                 cl = *static_cast<Layout*>(cl), alpha = *static_cast<const float*>(alpha), beta = *static_cast<const float*>(beta),
                                 a, b, c, d, workspace] {
    std::memset(workspace, 0xff, kWorkspace);
    multiply(desc, alpha, a, al, b, bl, beta, c, d, cl);
  });
  return 0;
}

}  // extern "C"
