#include "block.h"

#include <sanitizer/common_interface_defs.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>

namespace rz::emulator {

thread_local Position position;

namespace {

constexpr size_t kStackBytes = size_t{256} << 10;
constexpr int kWarp = 32;
constexpr int kGarbage = 0xff;  // NaN in every floating dtype, -1 in integers

enum class State { Ready, AtBarrier, AtWarp, Done };

struct Fiber {
  ucontext_t context;
  void* asan_stack = nullptr;
  State state;
  uint3 thread;
  int index;
  // A warp exchange that this lane waits in, and its outcome.
  unsigned mask;
  WarpCall call;
  uint64_t brought[2];
  Lanes lanes;
};

struct Mapping {
  char* data = nullptr;
  size_t bytes = 0;
  ~Mapping() {
    if (data) munmap(data, bytes);
  }
  void grow(size_t wanted) {
    if (bytes >= wanted) return;
    if (data) munmap(data, bytes);
    data = static_cast<char*>(mmap(nullptr, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    bytes = wanted;
  }
};

class Block {
 public:
  void run(dim3 size, size_t shared_bytes, const std::function<void()>& body, std::mt19937_64& random);
  void suspend(State state);
  Fiber& current() { return *current_; }
  Fiber* lane(int warp, int lane) {
    size_t i = static_cast<size_t>(warp * kWarp + lane);
    return i < fibers_.size() ? fibers_[i].get() : nullptr;
  }
  void* shared() { return shared_.get(); }
  void try_release_barrier();
  void try_release_warp(int warp);

 private:
  static void enter();
  void resume(Fiber& fiber);
  [[noreturn]] void fail_stuck();
  void make_ready(Fiber& fiber) {
    fiber.state = State::Ready;
    ready_.push_back(&fiber);
  }

  Fiber* draw(std::mt19937_64& random);

  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> ready_;
  int late_warp_ = -1;  // runs only when nobody else can; -1: none
  Fiber* current_ = nullptr;
  size_t done_ = 0, at_barrier_ = 0;
  const std::function<void()>* body_ = nullptr;
  std::unique_ptr<unsigned char[]> shared_;
  Mapping stacks_;
  ucontext_t scheduler_;
  void* scheduler_asan_stack_ = nullptr;
  const void* scheduler_bottom_ = nullptr;
  size_t scheduler_bytes_ = 0;
};

thread_local Block block;

void Block::enter() {
  __sanitizer_finish_switch_fiber(nullptr, &block.scheduler_bottom_, &block.scheduler_bytes_);
  (*block.body_)();
  block.current_->state = State::Done;
  __sanitizer_start_switch_fiber(nullptr, block.scheduler_bottom_, block.scheduler_bytes_);  // null: this fiber ends
  swapcontext(&block.current_->context, &block.scheduler_);
}

void Block::resume(Fiber& fiber) {
  current_ = &fiber;
  position.thread = fiber.thread;
  __sanitizer_start_switch_fiber(&scheduler_asan_stack_, stacks_.data + static_cast<size_t>(fiber.index) * kStackBytes, kStackBytes);
  swapcontext(&scheduler_, &fiber.context);
  __sanitizer_finish_switch_fiber(scheduler_asan_stack_, nullptr, nullptr);
}

// Leaves the fiber; it comes back when something made it ready.
void Block::suspend(State state) {
  Fiber& fiber = *current_;
  fiber.state = state;
  __sanitizer_start_switch_fiber(&fiber.asan_stack, scheduler_bottom_, scheduler_bytes_);
  swapcontext(&fiber.context, &scheduler_);
  __sanitizer_finish_switch_fiber(fiber.asan_stack, &scheduler_bottom_, &scheduler_bytes_);
}

Fiber* Block::draw(std::mt19937_64& random) {
  if (late_warp_ < 0 || random() % 4096 == 0) late_warp_ = static_cast<int>(random() % (2 * (fibers_.size() / kWarp + 1)));
  size_t chosen = random() % ready_.size();
  if (ready_[chosen]->index / kWarp == late_warp_) {
    // Somebody else, if there is anybody.
    for (size_t i = 0; i < ready_.size(); ++i) {
      const size_t other = (chosen + i) % ready_.size();
      if (ready_[other]->index / kWarp == late_warp_) continue;
      chosen = other;
      break;
    }
  }
  std::swap(ready_[chosen], ready_.back());
  Fiber* fiber = ready_.back();
  ready_.pop_back();
  return fiber;
}

void Block::try_release_barrier() {
  at_barrier_ = 0;
  for (auto& fiber : fibers_) at_barrier_ += fiber->state == State::AtBarrier;
  if (at_barrier_ == 0 || at_barrier_ + done_ < fibers_.size()) return;
  for (auto& fiber : fibers_)
    if (fiber->state == State::AtBarrier) make_ready(*fiber);
  late_warp_ = -1;
}

// Completes every exchange of the warp whose lanes are all there.
void Block::try_release_warp(int warp) {
  for (int first = 0; first < kWarp; ++first) {
    Fiber* leader = lane(warp, first);
    if (!leader || leader->state != State::AtWarp) continue;
    bool complete = true;
    for (int l = 0; l < kWarp && complete; ++l) {
      if (!(leader->mask >> l & 1)) continue;
      Fiber* peer = lane(warp, l);
      complete = peer && peer->state == State::AtWarp && peer->mask == leader->mask && peer->call == leader->call;
    }
    if (!complete) continue;
    Lanes lanes;
    std::memset(&lanes, kGarbage, sizeof lanes);
    for (int l = 0; l < kWarp; ++l)
      if (leader->mask >> l & 1) std::memcpy(lanes.value[l], lane(warp, l)->brought, sizeof lanes.value[l]);
    for (int l = 0; l < kWarp; ++l)
      if (leader->mask >> l & 1) {
        lane(warp, l)->lanes = lanes;
        make_ready(*lane(warp, l));
      }
  }
}

void Block::fail_stuck() {
  std::string text = "threads wait for others that will never come:";
  int shown = 0;
  for (auto& fiber : fibers_) {
    if (fiber->state == State::Done || shown++ == 4) continue;
    text += " thread " + std::to_string(fiber->index) + (fiber->state == State::AtBarrier ? " in __syncthreads" : " in a warp exchange") + ";";
  }
  throw std::runtime_error(text + " " + std::to_string(done_) + " of " + std::to_string(fibers_.size()) + " have returned");
}

void Block::run(dim3 size, size_t shared_bytes, const std::function<void()>& body, std::mt19937_64& random) {
  const size_t count = static_cast<size_t>(size.x) * size.y * size.z;
  body_ = &body;
  done_ = 0;
  shared_ = std::make_unique<unsigned char[]>(shared_bytes);
  std::memset(shared_.get(), kGarbage, shared_bytes);
  SharedMemory::spoil();
  stacks_.grow(count * kStackBytes);
  fibers_.resize(count);
  ready_.clear();
  for (size_t i = 0; i < count; ++i) {
    if (!fibers_[i]) fibers_[i] = std::make_unique<Fiber>();
    Fiber& fiber = *fibers_[i];
    fiber.index = static_cast<int>(i);
    fiber.thread = {static_cast<unsigned>(i) % size.x, static_cast<unsigned>(i) / size.x % size.y, static_cast<unsigned>(i) / (size.x * size.y)};
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stacks_.data + i * kStackBytes;
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, &Block::enter, 0);
    make_ready(fiber);
  }
  while (done_ < count) {
    if (ready_.empty()) fail_stuck();
    Fiber& next = *draw(random);
    resume(next);
    if (next.state == State::Done) ++done_;
    if (next.state != State::AtWarp) try_release_barrier();
    else try_release_warp(next.index / kWarp);
  }
  shared_.reset();
}

struct Shared {
  void* data;
  size_t bytes;
};
std::vector<Shared>& shared_arrays() {
  static std::vector<Shared> all;
  return all;
}

}  // namespace

SharedMemory::SharedMemory(void* data, size_t bytes) {
  shared_arrays().push_back({data, bytes});
  std::memset(data, kGarbage, bytes);
}

void SharedMemory::spoil() {
  for (const Shared& shared : shared_arrays()) std::memset(shared.data, kGarbage, shared.bytes);
}

void run_grid(dim3 grid, dim3 size, size_t shared_bytes, const std::function<void()>& body, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<uint3> blocks;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) blocks.push_back({x, y, z});
  for (size_t left = blocks.size(); left > 0; --left) {
    std::swap(blocks[random() % left], blocks[left - 1]);
    position.block = blocks[left - 1];
    position.block_size = size;
    position.grid = grid;
    block.run(size, shared_bytes, body, random);
  }
}

void* dynamic_shared() { return block.shared(); }

void block_barrier() { block.suspend(State::AtBarrier); }

int lane_of_thread() { return block.current().index % kWarp; }

const Lanes& warp_exchange(unsigned mask, WarpCall call, const void* value, size_t bytes) {
  Fiber& fiber = block.current();
  fiber.mask = mask;
  fiber.call = call;
  fiber.brought[0] = fiber.brought[1] = 0;
  std::memcpy(fiber.brought, value, bytes);
  block.suspend(State::AtWarp);
  return fiber.lanes;
}

}  // namespace rz::emulator
