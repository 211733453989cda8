// One block of a kernel, on one host thread: each of its threads is a fiber, and the one that goes on is drawn at random at
// every barrier; between two of them one warp is often kept back as long as others can go on. So what is only right in one
// order of threads shows as a wrong result.
#pragma once
#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace rz::emulator {

// Where the running fiber is: what kernels call threadIdx and so on.
struct Position {
  uint3 thread{}, block{};
  dim3 block_size{}, grid{};
};
// Reached without a call, as the registers of a thread are.
extern constinit thread_local Position position [[gnu::tls_model("initial-exec")]];

// Runs `body` once for every thread of every block, blocks in random order. Throws std::runtime_error when threads wait for
// others that will never come.
void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body, uint64_t seed);

// ---- called by kernels ----
void* dynamic_shared();
// All threads of the block that have not returned.
void block_barrier();
// The lanes of `mask`: all must call it with the same mask and the same `call`. Gives the values that they brought.
enum class WarpCall { Sync, Shuffle, Ballot, Product };
struct Lanes {
  uint64_t value[32][2];
};
const Lanes& warp_exchange(unsigned mask, WarpCall call, const void* value, size_t bytes);
int lane_of_thread();
int index_of_thread();
size_t dynamic_shared_bytes();
// Of this host thread, counted from 1: state of another block is stale.
uint64_t block_number();
uint64_t random_of_block();
// `doing`, for an error: "for a barrier".
void wait_until(std::function<bool()> ready, const char* doing);
// Work of the hardware beside the threads: at some time while the block runs, in any order.
void later(std::function<void()> work);
// The launch fails.
[[noreturn]] void fail_block(std::string problem);

// Shared arrays of kernels are statics: they start every block with garbage.
class SharedMemory {
 public:
  SharedMemory(void* data, size_t bytes);
  void touch();  // this block uses it
  static void spoil();

 private:
  void* data_;
  size_t bytes_;
  bool touched_ = false;
};

template <class T, size_t kCount>
class SharedArray {
 public:
  T (&array())[kCount] {
    registered_.touch();
    return data_;
  }

 private:
  T data_[kCount];
  SharedMemory registered_{data_, sizeof data_};
};

}  // namespace rz::emulator
