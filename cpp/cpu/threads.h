// How many threads the compute stream's kernels and oneDNN use: cores / LOCAL_WORLD_SIZE unless set.
#pragma once

namespace rz::cpu {
int num_threads();
void set_num_threads(int threads);
const char* isa_name();      // the instruction set that the SIMD kernels were dispatched to: avx512bf16, avx512, avx2, baseline
const char* dnnl_version();  // for doctor
}  // namespace rz::cpu
