#include "core/settings.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>

#include "core/error.h"

namespace rz {

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

static int number(const char* name) { return std::atoi(variable(name).c_str()); }

static Settings read() {
  const std::string blocking = variable("RANKZERO_CUDA_BLOCKING");
  Settings s;
  s.isa = variable("RANKZERO_ISA");
  s.local_world_size = std::max(1, number("LOCAL_WORLD_SIZE"));
  s.local_rank = number("LOCAL_RANK");
  s.launcher = number("RANKZERO_LAUNCHER_PID");
  s.blocking_launches = !blocking.empty() && blocking[0] != '0';
  // Less than a driver's queue of 1,024, which CUDA_SCALE_LAUNCH_QUEUES makes as small as 256; and milliseconds of kernels.
  constexpr int kQueue = 192;
  const int queue = number("RANKZERO_CUDA_QUEUE");
  s.cuda_queue = queue > 0 ? std::max(queue, 4) : kQueue;
  s.tf32 = variable("RANKZERO_TF32") == "1";
  return s;
}

const Settings& settings() {
  static const Settings read_once = read();
  return read_once;
}

static constexpr const char* kAttentionKernels[] = {"auto", "mma", "hopper"};

const char* name_of(AttentionKernels kernels) { return kAttentionKernels[static_cast<int>(kernels)]; }

AttentionKernels attention_kernels(const std::string& name) {
  const auto found = std::find(std::begin(kAttentionKernels), std::end(kAttentionKernels), name);
  if (found == std::end(kAttentionKernels)) fail("ERR_ARGUMENT", "kernels of attention must be auto, mma or hopper but are ", name);
  return static_cast<AttentionKernels>(found - std::begin(kAttentionKernels));
}

KernelChoices KernelChoices::of_environment() {
  KernelChoices choices;
  const std::string attention = variable("RANKZERO_ATTENTION");
  if (!attention.empty() && attention != "mma" && attention != "hopper")
    fail("ERR_ARGUMENT", "RANKZERO_ATTENTION must be mma or hopper but is ", attention);
  if (!attention.empty()) choices.attention = attention_kernels(attention);
  const std::string logits = variable("RANKZERO_LOGITS");
  if (!logits.empty() && logits != "float32") fail("ERR_ARGUMENT", "RANKZERO_LOGITS must be float32 but is ", logits);
  choices.narrow_logits = logits.empty();
  choices.gemm_proposal = std::clamp(number("RANKZERO_CUBLASLT_PROPOSAL"), 0, kMostProposals - 1);
  const std::string seconds = variable("RANKZERO_BARRIER_SECONDS");
  if (!seconds.empty()) choices.barrier_seconds = number("RANKZERO_BARRIER_SECONDS");
  if (choices.barrier_seconds <= 0) fail("ERR_ARGUMENT", "RANKZERO_BARRIER_SECONDS must be a positive number but is ", seconds);
  choices.gemm_trials = std::clamp(number("RANKZERO_CUBLASLT_TRIALS"), 1, kMostProposals);
  return choices;
}

}  // namespace rz
