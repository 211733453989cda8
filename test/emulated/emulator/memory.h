// How much memory the emulated device has and has given away, in whatever way.
#pragma once
#include <cstddef>

namespace rz::emulator {

size_t memory_capacity();
// False: there is not so much left.
bool take_memory(size_t bytes);
void give_memory(size_t bytes);

}  // namespace rz::emulator
