# The SIMD kernels (cpp/cpu/simd) are compiled once per instruction set, each copy in a namespace of its own (RZ_ISA);
# cpp/cpu/dispatch.cc picks one table of functions at run time. Nothing in those files may have external linkage outside
# that namespace: an inline function compiled for AVX-512 must never be the copy that the linker keeps for everyone.
file(GLOB SIMD_SOURCES CONFIGURE_DEPENDS cpp/cpu/simd/*.cc)

function(rankzero_simd isa sources)
  add_library(rankzero_simd_${isa} OBJECT ${sources})
  target_include_directories(rankzero_simd_${isa} PRIVATE cpp)
  target_compile_definitions(rankzero_simd_${isa} PRIVATE RZ_ISA=isa_${isa})
  target_compile_options(rankzero_simd_${isa} PRIVATE -Wall -Wextra -Werror -Wno-psabi -Wno-unknown-pragmas
    -fopenmp-simd -fno-exceptions -fno-rtti -ffp-contract=fast ${ARGN})
  target_sources(rankzero_core PRIVATE $<TARGET_OBJECTS:rankzero_simd_${isa}>)
  set(RANKZERO_ISAS ${RANKZERO_ISAS} ${isa} PARENT_SCOPE)
endfunction()

# Random numbers and quantised weights have the same bits everywhere: a fused multiply-add would change them.
set_source_files_properties(cpp/cpu/simd/random.cc cpp/cpu/simd/quantize.cc cpp/cpu/quantized.cc PROPERTIES COMPILE_OPTIONS "-ffp-contract=off")
# So have codes of 8 bits, wherever a block is cut.
set_source_files_properties(cpp/cpu/simd/adamw8bit.cc PROPERTIES COMPILE_OPTIONS "-ffp-contract=off")

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  rankzero_simd(baseline "${SIMD_SOURCES}" -march=x86-64-v2)
  rankzero_simd(avx2 "${SIMD_SOURCES}" -march=x86-64-v3)
  rankzero_simd(avx512 "${SIMD_SOURCES}" -march=x86-64-v4 -mprefer-vector-width=512)
  # Only attention multiplies bfloat16 by itself.
  rankzero_simd(avx512bf16 cpp/cpu/simd/attention.cc -march=x86-64-v4 -mavx512bf16 -mprefer-vector-width=512)
else()
  rankzero_simd(baseline "${SIMD_SOURCES}")
endif()
