// Shared libraries that are looked for at run time: the addon loads without any of them. A report says which file was
// taken, or every place that was tried and why it would not do.
#pragma once
#include <string>
#include <vector>

namespace rz {

struct LibraryReport {
  std::string name;     // "NCCL"
  std::string path;     // of the file that is loaded; empty: none
  std::string version;  // as the library itself says
  std::string problem;  // why it is not used although a file was found
  std::vector<std::string> tried;
  std::string remedy;  // what brings it, where there is none: "CUDA's toolkit, or …"
  bool usable() const { return !path.empty() && problem.empty(); }
  // "NCCL was not found; tried:\n  …", for an error.
  std::string explain() const;
};

class Library {
 public:
  // `names` in the order of preference, e.g. libcublasLt.so.13 before .12. Where: the file that `variable` names and no
  // other; else the system's loader (which knows LD_LIBRARY_PATH); Python packages of VIRTUAL_ENV and CONDA_PREFIX;
  // CUDA_HOME, CUDA_PATH and /usr/local/cuda. Loaded libraries are never closed: others may use them too.
  static Library open(const char* title, const char* variable, const std::vector<std::string>& names);

  void* symbol(const char* name) const;  // null if absent
  // Fills one entry of a table; a required one that is absent becomes the report's problem.
  template <class Function>
  void load(Function*& entry, const char* name, bool required) {
    entry = reinterpret_cast<Function*>(symbol(name));
    if (required && !entry) lacks(name);
  }
  LibraryReport report;

 private:
  void lacks(const char* symbol);
  bool try_file(const std::string& file);
  void* handle_ = nullptr;
};

}  // namespace rz
