// What the environment says of this process. Only core/settings.cc reads it; what is on the way to a kernel gets values.
#pragma once
#include <sys/types.h>

#include <string>

namespace rz {

// One variable, for code that searches; empty: unset.
std::string variable(const char* name);

// Read once, at the first call.
struct Settings {
  std::string isa;         // RANKZERO_ISA: the widest instruction set of SIMD kernels; empty: the processor's
  int local_world_size;    // LOCAL_WORLD_SIZE, at least 1
  int local_rank;          // LOCAL_RANK
  pid_t launcher;          // RANKZERO_LAUNCHER_PID; 0: no launcher
  bool blocking_launches;  // RANKZERO_CUDA_BLOCKING: wait after each op, so that an error names the op that failed
  int cuda_queue;          // RANKZERO_CUDA_QUEUE: how many commands a stream may be ahead of the device; a driver's queue holds more
  bool tf32;               // RANKZERO_TF32=1: float32 GEMMs on the device may round their operands to TF32
};
const Settings& settings();

enum class AttentionKernels { Auto, Mma, Hopper };

// Kernels where the device has several for one op; each device that is opened has its own choice.
struct KernelChoices {
  static constexpr int kMostProposals = 16;
  // Auto: those for Hopper where they suit and a trial found them right. Hopper: without the trial. Mma: those for all devices.
  AttentionKernels attention = AttentionKernels::Auto;
  bool narrow_logits = true;  // the head's logits have the dtype of its operands, as in PyTorch; else float32
  // Before a kernel that waits in shared memory for what never comes is ended as an error. Sanitizers want more.
  int barrier_seconds = 20;
  int gemm_proposal = 0;  // which of the algorithms that cuBLASLt proposes is taken, below kMostProposals
  int gemm_trials = 1;    // more: so many of its proposals are timed at the first GEMM of a shape, and the fastest is taken
  int64_t gemm_least_timed = int64_t{1} << 30;  // m · n · k: small ones may have to have the same bits on all ranks, as those of routers

  // RANKZERO_ATTENTION (ERR_ARGUMENT unless it is mma, hopper or unset), RANKZERO_LOGITS (float32 or unset),
  // RANKZERO_CUBLASLT_PROPOSAL, RANKZERO_CUBLASLT_TRIALS and RANKZERO_BARRIER_SECONDS (ERR_ARGUMENT unless it is a positive number or unset).
  static KernelChoices of_environment();
};
// By name: "auto", "mma" or "hopper".
AttentionKernels attention_kernels(const std::string& name);
const char* name_of(AttentionKernels kernels);

}  // namespace rz
