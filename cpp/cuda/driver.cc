#include "cuda/driver.h"

namespace rz::cuda {

static Driver load() {
  Library library = Library::open("CUDA driver", "RANKZERO_CUDA_DRIVER_PATH", {"libcuda.so.1"});
  Driver table;
  library.load(table.cuDriverGetVersion, "cuDriverGetVersion", true);
  library.load(table.cuStreamWaitValue64, "cuStreamWaitValue64_v2", false);
  library.load(table.cuTensorMapEncodeTiled, "cuTensorMapEncodeTiled", false);
  int version = 0;
  if (library.report.usable() && table.cuDriverGetVersion(&version) == 0)
    library.report.version = "CUDA " + std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
  table.report = library.report;
  return table;
}

const Driver& driver() {
  static const Driver table = load();
  return table;
}

}  // namespace rz::cuda
