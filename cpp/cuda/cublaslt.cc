#include "cuda/cublaslt.h"

#include "cuda/driver.h"

namespace rz::cuda {

// A library of version 12 runs on newer drivers too, one of 13 on no older driver.
static std::vector<std::string> names() {
  if (const int version = driver().version; version > 0 && version < 13000) return {"libcublasLt.so.12", "libcublasLt.so.13"};
  return {"libcublasLt.so.13", "libcublasLt.so.12"};
}

static CublasLt load() {
  Library library = Library::open("cuBLASLt", "RANKZERO_CUBLASLT_PATH", names());
  const bool old_driver = driver().version > 0 && driver().version < 13000;
  library.report.remedy = std::string(old_driver ? "pip install nvidia-cublas-cu12" : "pip install nvidia-cublas") +
                          ", or CUDA's toolkit; RANKZERO_CUBLASLT_PATH names the file where it is elsewhere";
  CublasLt table;
  library.load(table.GetVersion, "cublasLtGetVersion", true);
#define RZ_LOAD(name, arguments) library.load(table.name, "cublasLt" #name, true);
  RZ_CUBLASLT_FUNCTIONS(RZ_LOAD)
#undef RZ_LOAD
  if (table.GetVersion) {
    size_t version = table.GetVersion();  // 130002; up to 12.x: 120304 too
    library.report.version = std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." + std::to_string(version % 100);
    const size_t major = version / 10000, of_driver = static_cast<size_t>(driver().version) / 1000;
    if (library.report.problem.empty() && major != 12 && major != 13)
      library.report.problem = "its version is " + library.report.version + ", and only 12 and 13 are known here";
    else if (library.report.problem.empty() && of_driver > 0 && of_driver < major)
      library.report.problem = "it needs a driver for CUDA " + std::to_string(major) + ", and this one is for " + version_text(driver().version);
  }
  table.report = library.report;
  return table;
}

const CublasLt& cublaslt() {
  static const CublasLt table = load();
  return table;
}

}  // namespace rz::cuda
