#include "comm/nccl_api.h"

namespace rz::comm {
namespace {

// 23007 is 2.30.7; up to 2.8 it was 2807.
std::string version_text(int version) {
  int unit = version < 10000 ? 1000 : 10000;
  return std::to_string(version / unit) + "." + std::to_string(version % unit / 100) + "." + std::to_string(version % 100);
}

Nccl load() {
  Library library = Library::open("NCCL", "RANKZERO_NCCL_PATH", {"libnccl.so.2"});
  library.report.remedy = "pip install nvidia-nccl-cu12 or nvidia-nccl-cu13, as the driver is; RANKZERO_NCCL_PATH names the file where it is elsewhere";
  // First: whatever else is missing, the version is what people ask for.
  int (*get_version)(int*) = nullptr;
  library.load(get_version, "ncclGetVersion", true);
  Nccl table;
  if (get_version && get_version(&table.version) == 0) library.report.version = version_text(table.version);
  library.load(table.GetErrorString, "ncclGetErrorString", true);
  library.load(table.GetLastError, "ncclGetLastError", false);
#define RZ_LOAD(required, name, arguments) library.load(table.name, "nccl" #name, required);
  RZ_NCCL_FUNCTIONS(RZ_LOAD)
#undef RZ_LOAD
  table.report = library.report;
  return table;
}

}  // namespace

const Nccl& nccl_api() {
  static const Nccl table = load();
  return table;
}

}  // namespace rz::comm
