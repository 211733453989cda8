// Picks the SIMD kernels once: the widest instruction set of the processor that RANKZERO_ISA allows.
#include <cstdlib>
#include <string_view>

#include "core/error.h"
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
#endif

static Table choose() {
  const char* variable = std::getenv("RANKZERO_ISA");
  std::string_view wanted = variable ? variable : "";
  if (!wanted.empty() && wanted != "baseline" && wanted != "avx2" && wanted != "avx512")
    fail("ERR_ARGUMENT", "RANKZERO_ISA must be baseline, avx2 or avx512 but is ", wanted);
#if defined(__x86_64__)
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                __builtin_cpu_supports("avx512cd");
  if (avx512 && (wanted.empty() || wanted == "avx512")) return isa_avx512::make_table();
  if (avx2 && wanted != "baseline") return isa_avx2::make_table();
#endif
  return isa_baseline::make_table();
}

const Table& simd() {
  static const Table table = choose();
  return table;
}

const char* isa_name() { return simd().name; }

}  // namespace rz::cpu
