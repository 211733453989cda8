#include "comm/hosts/engine_library.h"

#include <dlfcn.h>

#include "core/error.h"

namespace rz::comm {
namespace {

// The folder of the shared object that this code is in.
std::string own_folder() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<void*>(&own_folder), &info) == 0 || !info.dli_fname) return ".";
  const std::string file = info.dli_fname;
  return file.substr(0, file.rfind('/'));
}

struct Loaded {
  LibraryReport report;
  OpenEngine open = nullptr;
};

Loaded load() {
  Library library = Library::open("Gloo (rankzero_gloo.so)", "RANKZERO_GLOO_PATH", {own_folder() + "/rankzero_gloo.so"});
  Loaded loaded;
  EngineAbi abi = nullptr;
  library.load(abi, "rankzero_engine_abi", true);
  library.load(loaded.open, "rankzero_engine", true);
  EngineTitle title = nullptr;
  library.load(title, "rankzero_engine_title", true);
  if (title) library.report.version = title();
  if (abi && library.report.problem.empty() && abi() != kEngineAbi)
    library.report.problem = "it was built for another version of rankzero";
  loaded.report = library.report;
  return loaded;
}

const Loaded& loaded() {
  static const Loaded once = load();
  return once;
}

}  // namespace

const LibraryReport& engine_report() { return loaded().report; }

std::string engine_problem() {
  const LibraryReport& report = engine_report();
  if (report.usable()) return "";
  return report.explain() +
         "\nRanks of several hosts are connected by Gloo, whose module is built where its headers are: apt-get install -y libgloo-dev "
         "(Fedora: dnf install -y gloo-devel), then npm rebuild rankzero";
}

std::unique_ptr<Engine> open_engine(const std::string& address, int rank, int size) {
  if (std::string problem = engine_problem(); !problem.empty()) fail("ERR_BACKEND", problem);
  return std::unique_ptr<Engine>(loaded().open(address, rank, size));
}

}  // namespace rz::comm
