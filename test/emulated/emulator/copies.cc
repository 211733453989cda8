// Barriers in shared memory and copies of boxes.
#include <cuda.h>

#include <cstring>
#include <map>

#include "block.h"
#include "cuda/driver.h"
#include "cuda/tensor_map.h"
#include "sm90.h"

// Numbers that cpp/cuda has of its own, since it needs no header of the driver.
using rz::cuda::Swizzle, rz::cuda::TensorMap;
static_assert(rz::cuda::kTensorMapFloat16 == CU_TENSOR_MAP_DATA_TYPE_FLOAT16 && rz::cuda::kTensorMapBFloat16 == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16);
static_assert(rz::cuda::kTensorMapPromote128 == CU_TENSOR_MAP_L2_PROMOTION_L2_128B);
static_assert(static_cast<int>(Swizzle::Bytes64) == CU_TENSOR_MAP_SWIZZLE_64B && static_cast<int>(Swizzle::Bytes128) == CU_TENSOR_MAP_SWIZZLE_128B);
static_assert(sizeof(TensorMap) == sizeof(CUtensorMap) && alignof(TensorMap) >= alignof(CUtensorMap));
static_assert(sizeof(rz::emulator::TensorMapContent) <= sizeof(CUtensorMap));

namespace rz::emulator {
namespace {

struct Barrier {
  int count, pending;
  int64_t bytes = 0;  // expected, less those that came; negative while these are ahead
  unsigned phase = 0;
  bool usable = false;  // by the copy engine, once the initialisation is fenced
};
// Of threads that name the same number.
struct Meeting {
  int arrived = 0;
  unsigned times = 0;
};

struct Sync {
  uint64_t block = 0;
  std::map<uintptr_t, Barrier> barriers;
  std::map<int, Meeting> meetings;
  std::map<uintptr_t, int> unfenced;  // pieces of 16 bytes, and the thread that wrote each last
};

Sync& of_block() {
  static thread_local Sync sync;
  if (sync.block != block_number()) sync = {block_number(), {}, {}, {}};
  return sync;
}

Barrier& barrier_at(uintptr_t address) {
  auto& all = of_block().barriers;
  const auto found = all.find(address);
  if (found == all.end()) fail_block("a barrier in shared memory is used that was not initialised");
  return found->second;
}

void advance(Barrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  barrier.pending = barrier.count;
  ++barrier.phase;
}

}  // namespace

void barrier_init(uintptr_t barrier, int count) {
  in_shared(static_cast<uint32_t>(barrier), 8);
  if (barrier % 8 != 0 || count < 1) fail_block("a barrier in shared memory must lie at a multiple of 8 bytes and count a thread or more");
  of_block().barriers[barrier] = {count, count};
}

void barriers_initialised() {
  for (auto& [address, barrier] : of_block().barriers) barrier.usable = true;
}

void barrier_arrive(uintptr_t address, int expected_bytes) {
  Barrier& barrier = barrier_at(address);
  if (barrier.pending == 0) fail_block("more threads arrive at a barrier in shared memory than it counts");
  barrier.bytes += expected_bytes;
  --barrier.pending;
  advance(barrier);
}

void barrier_wait(uintptr_t address, int parity) {
  const Barrier& barrier = barrier_at(address);
  wait_until([&barrier, parity] { return static_cast<int>(barrier.phase & 1) != parity; }, "for a barrier in shared memory");
}

void store_zeros(uintptr_t to) {
  std::memset(in_shared(static_cast<uint32_t>(to), 16), 0, 16);
  of_block().unfenced[to / 16] = index_of_thread();
}
void shared_written() {
  std::erase_if(of_block().unfenced, [](const auto& piece) { return piece.second == index_of_thread(); });
}
bool has_unfenced() { return !of_block().unfenced.empty(); }
bool is_fenced(uintptr_t address) { return !of_block().unfenced.contains(address / 16); }

void arrive_of(int number, int threads) {
  if (number < 1 || number > 15 || threads % 32 != 0) fail_block("a barrier of some threads has a number from 1 to 15, and whole warps");
  Meeting& meeting = of_block().meetings[number];
  if (++meeting.arrived == threads) meeting = {0, meeting.times + 1};
}

void sync_threads_of(int number, int threads) {
  const Meeting& meeting = of_block().meetings[number];
  const unsigned before = meeting.times;
  arrive_of(number, threads);
  wait_until([&meeting, before] { return meeting.times != before; }, "in a barrier of some threads");
}

void copy_box(uintptr_t to, const void* map, uintptr_t barrier, int column, int head, int row) {
  TensorMapContent tensor;
  std::memcpy(&tensor, map, sizeof tensor);
  if (tensor.mark != kTensorMapMark) fail_block("a copy of a box from what is no tensor map");
  const size_t row_bytes = tensor.box[0] * 2, bytes = row_bytes * tensor.box[2];
  if (to % (tensor.swizzle * 8) != 0) fail_block("a box is copied to where its rows have other places: its beginning must be a multiple of eight rows");
  std::memset(in_shared(static_cast<uint32_t>(to), bytes), 0xff, bytes);
  if (!barrier_at(barrier).usable) fail_block("a barrier is given to the copy engine before its initialisation was fenced");
  later([=] {
    for (uint32_t r = 0; r < tensor.box[2]; ++r)
      for (size_t piece = 0; piece < row_bytes; piece += 16) {
        auto* at = reinterpret_cast<unsigned char*>(swizzled(to + r * row_bytes + piece, tensor.swizzle));
        const int64_t first = column + static_cast<int64_t>(piece / 2), from_row = int64_t{row} + r;
        const bool there = first >= 0 && static_cast<uint64_t>(first) + 8 <= tensor.size[0] && head >= 0 && static_cast<uint64_t>(head) < tensor.size[1] &&
                           from_row >= 0 && static_cast<uint64_t>(from_row) < tensor.size[2];
        if (there) std::memcpy(at, tensor.data + static_cast<uint64_t>(from_row) * tensor.stride[1] + static_cast<uint64_t>(head) * tensor.stride[0] + first * 2, 16);
        else std::memset(at, 0, 16);
      }
    Barrier& done = barrier_at(barrier);
    done.bytes -= static_cast<int64_t>(bytes);
    advance(done);
  });
}

unsigned char* in_shared(uint32_t address, uintptr_t bytes) {
  auto* base = static_cast<unsigned char*>(dynamic_shared());
  const auto offset = (address - static_cast<uint32_t>(reinterpret_cast<uintptr_t>(base))) & 0x3ffff;
  if (offset + bytes > dynamic_shared_bytes()) fail_block("an address lies beyond the shared memory of the block");
  return base + offset;
}

}  // namespace rz::emulator
