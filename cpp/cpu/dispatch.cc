// Picks the SIMD kernels once: the widest instruction set of the processor that RANKZERO_ISA allows.
#include <algorithm>
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

static Table choose() {
  const std::string_view names[] = {"baseline", "avx2", "avx512", "avx512bf16"}, wanted = settings().isa;
  const auto level = std::find(std::begin(names), std::end(names), wanted.empty() ? names[3] : wanted) - names;
  if (level == std::ssize(names))
    fail("ERR_ARGUMENT", "RANKZERO_ISA must be baseline, avx2, avx512 or avx512bf16 but is ", wanted);
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

const Table& simd() {
  static const Table table = choose();
  return table;
}

const char* isa_name() { return simd().name; }

}  // namespace rz::cpu
