// cpp/cuda/guard.h for the emulator: every block of memory is followed by a gap that must not be touched, and is garbage until
// it was written. Both happen in the order of the stream, since earlier work may still use the memory.
#pragma once
#include <sanitizer/asan_interface.h>

#include <cstddef>
#include <cstring>

#include "cuda/stream.h"
#include "queues.h"

namespace rz::cuda {

constexpr size_t kBlockGap = 64;

inline void guard_block(void* data, size_t bytes, size_t taken, CudaStream& stream) {
  emulator::enqueue(stream.handle(), [=] {
    auto* begin = static_cast<char*>(data);
    __asan_unpoison_memory_region(begin, taken);
    std::memset(begin, 0xff, taken);
    __asan_poison_memory_region(begin + bytes, taken - bytes);
  }, {}, false);
  stream.advance();  // else an event that another stream waits for next could be an earlier one
}

}  // namespace rz::cuda
