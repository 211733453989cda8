#include "core/library.h"

#include <dirent.h>
#include <dlfcn.h>
#include <link.h>

#include "core/settings.h"

namespace rz {
namespace {

std::vector<std::string> entries(const std::string& folder, const std::string& prefix) {
  std::vector<std::string> names;
  DIR* directory = opendir(folder.c_str());
  if (!directory) return names;
  while (const dirent* entry = readdir(directory)) {
    if (std::string name = entry->d_name; name.rfind(prefix, 0) == 0 && name[0] != '.') names.push_back(name);
  }
  closedir(directory);
  return names;
}

// nvidia/*/lib of the Python packages below `prefix`.
void add_packages(const std::string& prefix, std::vector<std::string>& folders) {
  for (const std::string& python : entries(prefix + "/lib", "python3")) {
    std::string nvidia = prefix + "/lib/" + python + "/site-packages/nvidia";
    for (const std::string& package : entries(nvidia, "")) folders.push_back(nvidia + "/" + package + "/lib");
  }
}

std::vector<std::string> search_folders() {
  std::vector<std::string> folders;
  for (const char* environment : {"VIRTUAL_ENV", "CONDA_PREFIX"}) {
    std::string prefix = variable(environment);
    if (prefix.empty()) continue;
    folders.push_back(prefix + "/lib");
    add_packages(prefix, folders);
  }
  for (const char* home : {"CUDA_HOME", "CUDA_PATH"})
    if (std::string folder = variable(home); !folder.empty()) folders.push_back(folder + "/lib64");
  folders.push_back("/usr/local/cuda/lib64");
  return folders;
}

}  // namespace

std::string LibraryReport::explain() const {
  if (usable()) return name + " " + version + ", " + path;
  std::string text = path.empty() ? name + " was not found; tried:" : name + " at " + path + " cannot be used: " + problem;
  if (path.empty())
    for (const std::string& line : tried) text += "\n  " + line;
  if (!remedy.empty()) text += "\n  To have it: " + remedy;
  return text;
}

bool Library::try_file(const std::string& file) {
  handle_ = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle_) {
    // "file: why" already, unless the file is of the wrong kind.
    const char* why = dlerror();
    report.tried.push_back(why ? why : file);
    return false;
  }
  link_map* map = nullptr;
  report.path = dlinfo(handle_, RTLD_DI_LINKMAP, &map) == 0 && map && map->l_name[0] ? map->l_name : file;
  return true;
}

Library Library::open(const char* title, const char* variable_name, const std::vector<std::string>& names) {
  Library library;
  library.report.name = title;
  if (std::string chosen = variable(variable_name); !chosen.empty()) {
    if (!library.try_file(chosen)) library.report.tried.back() += std::string(" (from ") + variable_name + ")";
    return library;
  }
  const std::vector<std::string> folders = search_folders();
  for (const std::string& name : names) {
    if (library.try_file(name)) return library;
    for (const std::string& folder : folders)
      if (library.try_file(folder + "/" + name)) return library;
  }
  return library;
}

void* Library::symbol(const char* name) const { return handle_ ? dlsym(handle_, name) : nullptr; }

void Library::lacks(const char* symbol) {
  if (report.path.empty()) return;
  report.problem += (report.problem.empty() ? "it lacks " : ", ") + std::string(symbol);
}

}  // namespace rz
