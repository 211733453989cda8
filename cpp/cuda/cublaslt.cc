#include "cuda/cublaslt.h"

namespace rz::cuda {

static CublasLt load() {
  Library library = Library::open("cuBLASLt", "RANKZERO_CUBLASLT_PATH", {"libcublasLt.so.13", "libcublasLt.so.12"});
  CublasLt table;
  library.load(table.GetVersion, "cublasLtGetVersion", true);
#define RZ_LOAD(name, arguments) library.load(table.name, "cublasLt" #name, true);
  RZ_CUBLASLT_FUNCTIONS(RZ_LOAD)
#undef RZ_LOAD
  if (table.GetVersion) {
    size_t version = table.GetVersion();  // 130002; up to 12.x: 120304 too
    library.report.version = std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." + std::to_string(version % 100);
    if (size_t major = version / 10000; library.report.problem.empty() && major != 12 && major != 13)
      library.report.problem = "its version is " + library.report.version + ", and only 12 and 13 are known here";
  }
  table.report = library.report;
  return table;
}

const CublasLt& cublaslt() {
  static const CublasLt table = load();
  return table;
}

}  // namespace rz::cuda
