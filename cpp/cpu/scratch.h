// Temporary buffers of a kernel. Each thread keeps what it used last, up to a bound: fresh pages cost more than most
// kernels that write them.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

namespace rz::cpu {

class Scratch {
 public:
  explicit Scratch(int64_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  template <class T = float>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_;
  int64_t bytes_;
};

}  // namespace rz::cpu
