// Copies of 16- and 32-bit elements without conversion, in the widest units that addresses and sizes allow.
#pragma once
#include <initializer_list>

#include "cuda/vec.h"

namespace rz::cuda {

// Calls `visit` with a value of the widest type, up to 16 bytes, whose size divides the addresses and `bytes`.
template <class Visit>
void with_unit(std::initializer_list<const void*> addresses, int64_t bytes, Visit visit) {
  auto all = static_cast<uintptr_t>(bytes);
  for (const void* address : addresses) all |= reinterpret_cast<uintptr_t>(address);
  if (all % 16 == 0) return visit(Bytes16{});
  if (all % 4 == 0) return visit(uint32_t{});
  if (all % 2 != 0) fail("ERR_DTYPE", "on device cuda elements of one byte cannot be moved by rows");
  visit(uint16_t{});
}

}  // namespace rz::cuda
