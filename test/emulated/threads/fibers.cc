// What the emulator tells AddressSanitizer, for a program under ThreadSanitizer: which fiber goes on; memory is not poisoned.
#include <sanitizer/tsan_interface.h>

#include <cstddef>
#include <map>

namespace {

// A fiber is known by the bottom of its stack, whose size is not 0; what goes on behind a suspended one, by itself.
void* fiber_of(const void* bottom, size_t bytes) {
  if (bytes == 0) return const_cast<void*>(bottom);
  static thread_local std::map<const void*, void*> fibers;
  void*& fiber = fibers[bottom];
  if (!fiber) fiber = __tsan_create_fiber(0);
  return fiber;
}
thread_local void* left = nullptr;

}  // namespace

extern "C" {

void __sanitizer_start_switch_fiber(void**, const void* bottom, size_t bytes) {
  left = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(fiber_of(bottom, bytes), 0);
}
void __sanitizer_finish_switch_fiber(void*, const void** bottom, size_t* bytes) {
  if (bottom) *bottom = left, *bytes = 0;
}
void __asan_poison_memory_region(const volatile void*, size_t) {}
void __asan_unpoison_memory_region(const volatile void*, size_t) {}
}
