// What include/cuda/hopper.h needs of sm_90a: barriers in shared memory, copies of boxes and products of warpgroups. All three are
// late where they may be: a copy is made at a random time before its barrier is waited for, in any order; a product reads shared
// memory when it is asked for or when it is waited for, and until then its registers are garbage. What the hardware leaves
// undefined fails the launch.
#pragma once
#include <cstdint>
#include <initializer_list>

namespace rz::emulator {

// What the emulated driver makes of a tensor: (rows, heads, dim) of two bytes each, sizes innermost first.
struct TensorMapContent {
  uint64_t mark;
  const unsigned char* data;
  uint64_t size[3], stride[2];  // bytes
  uint32_t box[3];
  uint32_t swizzle;  // bytes
};
constexpr uint64_t kTensorMapMark = 0x70616d726f736e65;

void barrier_init(uintptr_t barrier, int count);
void barriers_initialised();
void barrier_arrive(uintptr_t barrier, int expected_bytes);
void barrier_wait(uintptr_t barrier, int parity);
void sync_threads_of(int number, int threads);
void arrive_of(int number, int threads);
// Until the writer's fence, products that read there fail.
void store_zeros(uintptr_t to);
void shared_written();
bool has_unfenced();
bool is_fenced(uintptr_t address);
void copy_box(uintptr_t to, const void* map, uintptr_t barrier, int column, int head, int row);

// d (64, columns) of the calling thread: columns / 2 values. `a`: four registers, or null: a descriptor.
struct WarpgroupProduct {
  float* d;
  int columns;
  const uint32_t* a;
  uint64_t a_descriptor, b_descriptor;
  bool bf16, transposed, add;
};
void wgmma(const WarpgroupProduct& product);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(int pending, std::initializer_list<float*> results);

// The place that 18 bits of an address in shared memory mean; `bytes` must lie in it.
unsigned char* in_shared(uint32_t address, uintptr_t bytes);
// Pieces of 16 bytes change places within `span` bytes, by the row of so many bytes that they lie in.
inline uintptr_t swizzled(uintptr_t address, uint32_t span) { return address ^ ((address >> 3) & (span - 1) & 0x70); }

}  // namespace rz::emulator
