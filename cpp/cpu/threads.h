// How many threads the compute stream's kernels and oneDNN use: cores / LOCAL_WORLD_SIZE unless set.
#pragma once

namespace rz::cpu {
int num_threads();
void set_num_threads(int threads);
const char* isa_name();      // the instruction set that the SIMD kernels were dispatched to: avx512bf16, avx512, avx2, baseline
int isa_level();             // the same as a number: 0 baseline to 3 avx512bf16
int gemm_features();         // what else of the processor oneDNN chooses kernels by, as a set of bits
// SIMD kernels and GEMMs of exactly this level from now on; before the first GEMM. False: it came too late.
bool limit_isa(int level);
const char* dnnl_version();  // for doctor
}  // namespace rz::cpu
