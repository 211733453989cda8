// The kernels for Hopper against the others, once in a process for each dtype and head size, before their results are used: they
// were written without such a device at hand, and wrong numbers are worse than slow ones.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <vector>

#include "cuda/attention_hopper.h"
#include "cuda/check.h"
#include "ops/elementwise.h"
#include "ops/random.h"

namespace rz::cuda {
namespace {

// Two sequences, of which the second has more tiles than are in flight; all keys, and a window.
constexpr int64_t kRows = 450, kFirst = 3, kHeads = 2, kKvHeads = 1, kSequences = 2, kWindow = 100;
constexpr double kTolerance = 2e-2;  // of each result

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
    norm += static_cast<double>(b[i]) * b[i];
  }
  const double apart = std::sqrt(difference / norm);
  return std::isnan(apart) ? INFINITY : apart;
}

// What the operands and the results of a trial take, one after the other.
class Trial {
 public:
  Trial(DType dtype, int64_t dim, CudaStream& stream) : dim_(dim), stream_(stream), memory_(stream.scratch(kBytes)) {
    for (View* wide : {&q_, &d_o_, &o_, &dq_}) *wide = take(dtype, kRows * kHeads * dim);
    for (View* narrow : {&k_, &v_, &dk_, &dv_}) *narrow = take(dtype, kRows * kKvHeads * dim);
    lse_ = take(DType::Float32, kHeads * kRows), delta_ = take(DType::Float32, kHeads * kRows), cu_ = take(DType::Int32, kSequences + 1);
    uint64_t seed = 0;
    for (const View& x : {q_, k_, v_, d_o_}) run(RandomFill{x, ++seed, 0, 0, true, 0, 1}, stream);
    for (int64_t i = 0; i <= kSequences; ++i)
      run(Fill{{cu_.as<int32_t>() + i, DType::Int32, 1}, i == 0 ? 0.0 : i == 1 ? static_cast<double>(kFirst) : static_cast<double>(kRows)}, stream);
  }

  // The furthest that a result is apart. While a trial runs, run() takes the other kernels.
  double difference(int64_t window) {
    const auto got = results(window, true), wanted = results(window, false);
    double most = 0;
    for (size_t i = 0; i < got.size(); ++i) most = std::max(most, distance(got[i], wanted[i]));
    return most;
  }

 private:
  static constexpr size_t kBytes = size_t{4} << 20;

  std::vector<std::vector<float>> results(int64_t window, bool hopper) {
    const auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(dim_)));
    for (const View& x : {o_, dq_, dk_, dv_, lse_}) run(Fill{x, NAN}, stream_);
    const AttentionForward forward{o_, lse_, q_, k_, v_, cu_, cu_, kRows, kRows, kSequences, kHeads, kKvHeads, dim_, window, scale};
    const AttentionBackward backward{dq_, dk_, dv_, d_o_, o_, q_, k_, v_, lse_, cu_, kRows, kSequences, kHeads, kKvHeads, dim_, window, scale};
    if (hopper) {
      run_hopper(forward, shape_of(forward), stream_);
      attention_delta(backward, delta_.as<float>(), stream_);
      run_hopper(backward, shape_of(backward), delta_.as<float>(), stream_);
    } else {
      run(forward, stream_);
      run(backward, stream_);
    }
    std::vector<std::vector<float>> all;
    for (const View& x : {o_, dq_, dk_, dv_, lse_}) all.push_back(values(x));
    return all;
  }

  View take(DType dtype, int64_t numel) {
    const View view{static_cast<char*>(memory_->data()) + taken_, dtype, numel};
    taken_ += static_cast<size_t>(numel) * size_of(dtype) / 512 * 512 + 512;
    if (taken_ > kBytes) fail("ERR_CUDA", "a trial of attention takes more memory than it has");
    return view;
  }

  std::vector<float> values(const View& x) const {
    std::vector<char> bytes(static_cast<size_t>(x.numel) * size_of(x.dtype));
    check(cudaMemcpyAsync(bytes.data(), x.data, bytes.size(), cudaMemcpyDeviceToHost, stream_.handle()), "copying results of a trial");
    check(cudaStreamSynchronize(stream_.handle()), "attention for Hopper failed on this device (RANKZERO_ATTENTION=mma does without)");
    const View here{bytes.data(), x.dtype, x.numel};
    std::vector<float> all(static_cast<size_t>(x.numel));
    for (size_t i = 0; i < all.size(); ++i)
      all[i] = x.dtype == DType::Float32 ? here.as<float>()[i] : x.dtype == DType::BFloat16 ? to_float(here.as<bf16>()[i]) : to_float(here.as<f16>()[i]);
    return all;
  }

  int64_t dim_;
  CudaStream& stream_;
  std::shared_ptr<Storage> memory_;
  size_t taken_ = 0;
  View q_, d_o_, o_, dq_, k_, v_, dk_, dv_, lse_, delta_, cu_;
};

enum class Verdict { Unknown, Trying, Equal, Different };

}  // namespace

// Ops of a device are launched by one thread, which a trial blocks.
static bool equal_in_trial(DType dtype, int64_t dim, CudaStream& stream) {
  static thread_local std::array<Verdict, 6> verdicts{};
  Verdict& verdict = verdicts[(dtype == DType::BFloat16 ? 0 : 3) + static_cast<size_t>(dim / 32 - 2)];
  if (verdict == Verdict::Unknown) {
    verdict = Verdict::Trying;  // and stays so if the device is lost
    Trial trial(dtype, dim, stream);
    const double apart = std::max(trial.difference(0), trial.difference(kWindow));
    verdict = apart <= kTolerance ? Verdict::Equal : Verdict::Different;
    if (verdict == Verdict::Different)
      std::fprintf(stderr, "rankzero: attention for Hopper (head size %d) differs by %.2g from the kernels for all devices, which are used instead\n",
                   static_cast<int>(dim), apart);
  }
  return verdict == Verdict::Equal;
}

uint64_t barrier_limit(CudaStream& stream) { return static_cast<uint64_t>(stream.context().kernels.barrier_seconds) * 1'000'000'000; }

bool suits_hopper(const AttentionShape& a, DType dtype, int64_t k_rows, CudaStream& stream) {
  const AttentionKernels wanted = stream.context().kernels.attention;
  if (wanted == AttentionKernels::Mma || !a.aligned || (a.dim != 64 && a.dim != 96 && a.dim != 128) || k_rows == 0 || !has_hopper(stream.context().properties()))
    return false;
  return wanted == AttentionKernels::Hopper || equal_in_trial(dtype, a.dim, stream);
}

}  // namespace rz::cuda
