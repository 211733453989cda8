#include "cuda/driver.h"

namespace rz::cuda {

std::string version_text(int version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); }

static Driver load() {
  Library library = Library::open("CUDA driver", "RANKZERO_CUDA_DRIVER_PATH", {"libcuda.so.1"});
  Driver table;
  library.load(table.cuDriverGetVersion, "cuDriverGetVersion", true);
  library.load(table.cuStreamWaitValue64, "cuStreamWaitValue64_v2", false);
  library.load(table.cuTensorMapEncodeTiled, "cuTensorMapEncodeTiled", false);
  library.load(table.cuDeviceGet, "cuDeviceGet", false);
  library.load(table.cuDeviceGetAttribute, "cuDeviceGetAttribute", false);
  library.load(table.cuMemGetAllocationGranularity, "cuMemGetAllocationGranularity", false);
  library.load(table.cuMemAddressReserve, "cuMemAddressReserve", false);
  library.load(table.cuMemAddressFree, "cuMemAddressFree", false);
  library.load(table.cuMemCreate, "cuMemCreate", false);
  library.load(table.cuMemRelease, "cuMemRelease", false);
  library.load(table.cuMemMap, "cuMemMap", false);
  library.load(table.cuMemUnmap, "cuMemUnmap", false);
  library.load(table.cuMemSetAccess, "cuMemSetAccess", false);
  if (library.report.usable() && table.cuDriverGetVersion(&table.version) == 0)
    library.report.version = "CUDA " + version_text(table.version);
  table.report = library.report;
  return table;
}

const Driver& driver() {
  static const Driver table = load();
  return table;
}

}  // namespace rz::cuda
