// A device of a dry run: its memory is counted as a device's is, and does not exist; its streams drop what is enqueued.
#pragma once
#include "core/cuda.h"

namespace rz::cuda {

std::unique_ptr<Backend> open_dry(const std::vector<std::unique_ptr<Stream>>* streams);

}  // namespace rz::cuda
