// Which devices the kernels of a build run on.
#pragma once
#include <algorithm>
#include <cctype>
#include <sstream>
#include <string>

namespace rz::cuda {

// Whether kernels that were compiled for `architectures`, as CMake has them ("80-real, 90a"), run on a device: code of the same
// major and an older minor version does, and what is not "real" is compiled by the driver for whatever is newer, which only a
// driver as new as the compiler can. Code for 90a is for 9.0 alone, that for 100f for its major version. A word such as "native"
// is trusted.
inline bool runs_on(std::string architectures, int major, int minor) {
  std::replace(architectures.begin(), architectures.end(), ',', ' ');
  std::istringstream words(architectures);
  for (std::string word; words >> word;) {
    if (!std::isdigit(static_cast<unsigned char>(word[0]))) return true;
    size_t digits = 0;
    const int number = std::stoi(word, &digits), capability = 10 * major + minor;
    const std::string suffix = word.substr(digits);
    const bool same_major = number / 10 == major && number <= capability;
    if (suffix[0] == 'a' ? number == capability : suffix[0] == 'f' || suffix == "-real" ? same_major : number <= capability) return true;
  }
  return false;
}

}  // namespace rz::cuda
