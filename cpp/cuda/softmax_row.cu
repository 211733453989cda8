#include "cuda/softmax_row.h"

namespace rz::cuda {

static __global__ void count_labels(double* count, const int64_t* labels, int64_t n) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kRowThreads) sum += labels[i] >= 0;
  sum = block_sum(sum, kRowThreads);
  if (threadIdx.x == 0) *count = sum;
}

Denominator denominator_of(double given, const View& labels, double* counted, CudaStream& stream) {
  if (given != 0) return {given, nullptr};
  launch(count_labels, 1, kRowThreads, 0, stream, counted, labels.as<int64_t>(), labels.numel);
  return {0, counted};
}

static __global__ void add_losses(float* loss, const double* losses, int64_t rows, Denominator denominator, bool accumulate) {
  double sum = 0;
  for (int64_t r = threadIdx.x; r < rows; r += kRowThreads) sum += losses[r];
  sum = block_sum(sum, kRowThreads);
  if (threadIdx.x == 0) *loss = static_cast<float>((accumulate ? static_cast<double>(*loss) : 0.0) + sum / denominator.value());
}

void write_loss(const View& loss, const double* losses, int64_t rows, Denominator denominator, bool accumulate, CudaStream& stream) {
  launch(add_losses, 1, kRowThreads, 0, stream, loss.as<float>(), losses, rows, denominator, accumulate);
}

}  // namespace rz::cuda
