// Picks the SIMD kernels: the widest instruction set of the processor that RANKZERO_ISA allows, or, in a job of several hosts, that
// all of their processors have.
#include <oneapi/dnnl/dnnl.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <algorithm>
#include <atomic>
#include <iterator>
#include <string_view>

#include "core/error.h"
#include "core/settings.h"
#include "cpu/simd.h"
#include "cpu/threads.h"

namespace rz::cpu {

namespace isa_baseline {
Table make_table();
}
#if defined(__x86_64__)
namespace isa_avx2 {
Table make_table();
}
namespace isa_avx512 {
Table make_table();
}
namespace isa_avx512bf16 {
void add_attention(Table& table);  // the bfloat16 entries
}
#endif

namespace {

constexpr std::string_view kNames[] = {"baseline", "avx2", "avx512", "avx512bf16"};

int wanted_level() {
  const std::string_view wanted = settings().isa;
  const auto level = std::find(std::begin(kNames), std::end(kNames), wanted.empty() ? kNames[3] : wanted) - kNames;
  if (level == std::ssize(kNames))
    fail("ERR_ARGUMENT", "RANKZERO_ISA must be baseline, avx2, avx512 or avx512bf16 but is ", wanted);
  return static_cast<int>(level);
}

Table choose([[maybe_unused]] int level) {
#if defined(__x86_64__)
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                __builtin_cpu_supports("avx512cd");
  if (avx512 && level >= 2) {
    Table table = isa_avx512::make_table();
    if (__builtin_cpu_supports("avx512bf16") && level >= 3) {
      isa_avx512bf16::add_attention(table);
      table.name = "avx512bf16";
    }
    return table;
  }
  if (avx2 && level >= 1) return isa_avx2::make_table();
#endif
  return isa_baseline::make_table();
}

// The tables live on: a kernel may run while another one is chosen.
std::atomic<const Table*> chosen{nullptr};

}  // namespace

const Table& simd() {
  const Table* table = chosen.load(std::memory_order_acquire);
  if (table) return *table;
  static const Table widest = choose(wanted_level());
  chosen.compare_exchange_strong(table, &widest, std::memory_order_acq_rel);
  return *chosen.load(std::memory_order_acquire);
}

const char* isa_name() { return simd().name; }

int isa_level() { return static_cast<int>(std::find(std::begin(kNames), std::end(kNames), isa_name()) - kNames); }

int gemm_features() {
  int features = 0;
#if defined(__x86_64__)
  unsigned a, b, c, d;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) features = static_cast<int>((c >> 11 & 1) | (d >> 22 & 15) << 1);  // VNNI; AMX, FP16
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) features |= static_cast<int>(a >> 4 & 3) << 5;                   // AVX-VNNI, BF16
#endif
  return features;
}

bool limit_isa(int level) {
#if defined(__x86_64__)
  const dnnl_cpu_isa_t sets[] = {dnnl_cpu_isa_sse41, dnnl_cpu_isa_avx2, dnnl_cpu_isa_avx512_core, dnnl_cpu_isa_avx512_core_bf16};
  if (dnnl_set_max_cpu_isa(sets[level]) != dnnl_success) return false;
#endif
  if (level < isa_level()) chosen.store(new Table(choose(level)), std::memory_order_release);
  return true;
}

}  // namespace rz::cpu
