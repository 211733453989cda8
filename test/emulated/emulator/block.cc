#include "block.h"

#include <sanitizer/common_interface_defs.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <stdexcept>
#include <utility>

namespace rz::emulator {

constinit thread_local Position position;

namespace {

constexpr size_t kStackBytes = size_t{256} << 10;
constexpr int kWarp = 32;
constexpr int kGarbage = 0xff;  // NaN in every floating dtype, -1 in integers

struct Mapping {
  explicit Mapping(size_t wanted)
      : data(mmap(nullptr, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)), bytes(wanted) {
    if (data == MAP_FAILED) throw std::bad_alloc();
  }
  Mapping(const Mapping&) = delete;
  ~Mapping() { munmap(data, bytes); }
  void* data;
  size_t bytes;
};

enum class State { Ready, AtBarrier, AtWarp, Waiting, Done };

// Where to go on. The compiler's own jump costs a few instructions; swapcontext calls the kernel, and AddressSanitizer's wrapper
// of it clears the shadow of the whole stack each time. So this file is compiled without AddressSanitizer.
using Jump = void* [5];

[[noreturn, gnu::noinline, gnu::no_sanitize_thread]] void go_on(Jump& jump) { __builtin_longjmp(jump, 1); }

// A host thread's fiber lives on from block to block.
struct Fiber {
  Mapping stack{kStackBytes};
  ucontext_t context;  // how it starts
  bool started = false;
  Jump jump;
  void* asan_stack = nullptr;
  State state;
  uint3 thread;
  int index;
  // A warp exchange that this lane waits in, and its outcome.
  unsigned mask;
  WarpCall call;
  uint64_t brought[2];
  std::shared_ptr<const Lanes> lanes;
  // What it waits for.
  std::function<bool()> ready;
  const char* doing;
};

class Block {
 public:
  void run(dim3 size, size_t shared_bytes, const std::function<void()>& body, std::mt19937_64& random);
  void suspend(State state);
  Fiber& current() { return *current_; }
  Fiber* lane(int warp, int lane) {
    size_t i = static_cast<size_t>(warp * kWarp + lane);
    return i < count_ ? fibers_[i].get() : nullptr;
  }
  void* shared() { return shared_.get(); }
  size_t shared_bytes() const { return shared_bytes_; }
  uint64_t number() const { return number_; }
  uint64_t random() { return (*random_)(); }
  void wait_until(std::function<bool()> ready, const char* doing);
  void later(std::function<void()> work) { later_.push_back(std::move(work)); }
  [[noreturn]] void fail(std::string problem);

 private:
  static void enter();
  void prepare(Fiber& fiber);
  void resume(Fiber& fiber);
  void leave(Fiber& fiber);
  void try_release_barrier();
  void try_release_warp(const Fiber& last);
  void release_waiting();
  void do_later();
  [[noreturn]] void fail_stuck();
  [[noreturn]] void fail_with(const std::string& problem);
  void make_ready(Fiber& fiber) {
    fiber.state = State::Ready;
    ready_.push_back(&fiber);
  }

  Fiber* draw(std::mt19937_64& random);

  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> ready_;
  int late_warp_ = -1;  // runs only when nobody else can; -1: none
  Fiber* current_ = nullptr;
  size_t count_ = 0, done_ = 0, at_barrier_ = 0;
  const std::function<void()>* body_ = nullptr;
  struct Free {
    void operator()(unsigned char* data) const { std::free(data); }
  };
  std::unique_ptr<unsigned char, Free> shared_;
  size_t shared_bytes_ = 0;
  uint64_t number_ = 0;
  std::mt19937_64* random_ = nullptr;
  std::vector<Fiber*> waiting_;
  std::vector<std::function<void()>> later_;
  std::string problem_;
  ucontext_t ignored_;
  Jump scheduler_;
  void* scheduler_asan_stack_ = nullptr;
  const void* scheduler_bottom_ = nullptr;
  size_t scheduler_bytes_ = 0;
};

thread_local Block block [[gnu::tls_model("initial-exec")]];

void Block::enter() {
  __sanitizer_finish_switch_fiber(nullptr, &block.scheduler_bottom_, &block.scheduler_bytes_);
  while (true) {
    (*block.body_)();
    block.suspend(State::Done);
  }
}

void Block::prepare(Fiber& fiber) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.data;
  fiber.context.uc_stack.ss_size = fiber.stack.bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, &Block::enter, 0);
}

void Block::resume(Fiber& fiber) {
  current_ = &fiber;
  position.thread = fiber.thread;
  __sanitizer_start_switch_fiber(&scheduler_asan_stack_, fiber.stack.data, fiber.stack.bytes);
  leave(fiber);
  __sanitizer_finish_switch_fiber(scheduler_asan_stack_, nullptr, nullptr);
}

// Returns when the fiber is suspended, which is after ThreadSanitizer was told of one switch and another.
[[gnu::no_sanitize_thread]] void Block::leave(Fiber& fiber) {
  if (__builtin_setjmp(scheduler_)) return;
  if (fiber.started) go_on(fiber.jump);
  fiber.started = true;
  swapcontext(&ignored_, &fiber.context);
}

// Leaves the fiber; it comes back when something made it ready.
void Block::suspend(State state) {
  Fiber& fiber = *current_;
  fiber.state = state;
  __sanitizer_start_switch_fiber(&fiber.asan_stack, scheduler_bottom_, scheduler_bytes_);
  if (!__builtin_setjmp(fiber.jump)) go_on(scheduler_);
  __sanitizer_finish_switch_fiber(block.current_->asan_stack, &block.scheduler_bottom_, &block.scheduler_bytes_);
}

Fiber* Block::draw(std::mt19937_64& random) {
  if (late_warp_ < 0 || random() % 4096 == 0) late_warp_ = static_cast<int>(random() % (2 * (count_ / kWarp + 1)));
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
  if (at_barrier_ == 0 || at_barrier_ + done_ < count_) return;
  for (size_t i = 0; i < count_; ++i)
    if (fibers_[i]->state == State::AtBarrier) make_ready(*fibers_[i]);
  at_barrier_ = 0;
  late_warp_ = -1;
}

// Completes the exchange that `last` waits in, if all its lanes are there.
void Block::try_release_warp(const Fiber& last) {
  const int warp = last.index / kWarp;
  for (int l = 0; l < kWarp; ++l) {
    if (!(last.mask >> l & 1)) continue;
    const Fiber* peer = lane(warp, l);
    if (!peer || peer->state != State::AtWarp || peer->mask != last.mask || peer->call != last.call) return;
  }
  auto lanes = std::make_shared<Lanes>();
  std::memset(lanes.get(), kGarbage, sizeof *lanes);
  const unsigned mask = last.mask;
  for (int l = 0; l < kWarp; ++l)
    if (mask >> l & 1) std::memcpy(lanes->value[l], lane(warp, l)->brought, sizeof lanes->value[l]);
  for (int l = 0; l < kWarp; ++l)
    if (mask >> l & 1) {
      lane(warp, l)->lanes = lanes;
      make_ready(*lane(warp, l));
    }
}

void Block::wait_until(std::function<bool()> ready, const char* doing) {
  if (ready()) return;
  current_->ready = std::move(ready);
  current_->doing = doing;
  suspend(State::Waiting);
}

void Block::release_waiting() {
  for (size_t i = 0; i < waiting_.size();) {
    if (!waiting_[i]->ready()) {
      ++i;
      continue;
    }
    make_ready(*waiting_[i]);
    waiting_[i] = waiting_.back();
    waiting_.pop_back();
  }
}

void Block::do_later() {
  std::swap(later_[random() % later_.size()], later_.back());
  const std::function<void()> work = std::move(later_.back());
  later_.pop_back();
  work();
}

// Leaves the fiber for good.
void Block::fail(std::string problem) {
  problem_ = std::move(problem);
  suspend(State::Waiting);
  std::abort();
}

void Block::fail_with(const std::string& problem) {
  const std::string text = problem;
  fibers_.clear();  // theirs are in the middle of the kernel
  waiting_.clear();
  later_.clear();
  problem_.clear();
  throw std::runtime_error(text);
}

static const char* doing(State state, const char* waiting) {
  switch (state) {
    case State::AtBarrier: return "in __syncthreads";
    case State::AtWarp: return "in a warp exchange";
    default: return waiting;
  }
}

void Block::fail_stuck() {
  std::string text = "threads wait for others that will never come:";
  int shown = 0;
  for (size_t i = 0; i < count_; ++i) {
    const Fiber* fiber = fibers_[i].get();
    if (fiber->state == State::Done || shown++ >= 4) continue;
    text += " thread " + std::to_string(fiber->index) + " " + doing(fiber->state, fiber->doing) + ";";
  }
  fail_with(text + " " + std::to_string(done_) + " of " + std::to_string(count_) + " have returned");
}

void Block::run(dim3 size, size_t shared_bytes, const std::function<void()>& body, std::mt19937_64& random) {
  count_ = static_cast<size_t>(size.x) * size.y * size.z;
  body_ = &body;
  done_ = at_barrier_ = 0;
  constexpr size_t kAlign = 1024;
  shared_.reset(static_cast<unsigned char*>(std::aligned_alloc(kAlign, (shared_bytes + kAlign) / kAlign * kAlign)));
  shared_bytes_ = shared_bytes;
  std::memset(shared_.get(), kGarbage, shared_bytes);
  random_ = &random;
  ++number_;
  SharedMemory::spoil();
  ready_.clear();
  for (size_t i = 0; i < count_; ++i) {
    if (i == fibers_.size()) {
      fibers_.push_back(std::make_unique<Fiber>());
      prepare(*fibers_[i]);
    }
    Fiber& fiber = *fibers_[i];
    fiber.index = static_cast<int>(i);
    fiber.thread = {static_cast<unsigned>(i) % size.x, static_cast<unsigned>(i) / size.x % size.y, static_cast<unsigned>(i) / (size.x * size.y)};
    make_ready(fiber);
  }
  while (done_ < count_) {
    if (!later_.empty() && (ready_.empty() || random() % 256 == 0)) do_later();
    release_waiting();
    if (ready_.empty() && !later_.empty()) continue;
    if (ready_.empty()) fail_stuck();
    Fiber& next = *draw(random);
    resume(next);
    if (!problem_.empty()) fail_with(problem_);
    if (next.state == State::AtWarp) {
      try_release_warp(next);
    } else if (next.state == State::Waiting) {
      waiting_.push_back(&next);
    } else {
      ++(next.state == State::Done ? done_ : at_barrier_);
      try_release_barrier();
    }
  }
  if (!later_.empty()) fail_with("the block ends while copies to its shared memory are under way");
  shared_.reset();
}

std::vector<SharedMemory*>& touched() {
  static std::vector<SharedMemory*> all;
  return all;
}

}  // namespace

SharedMemory::SharedMemory(void* data, size_t bytes) : data_(data), bytes_(bytes) { std::memset(data, kGarbage, bytes); }

void SharedMemory::touch() {
  if (!std::exchange(touched_, true)) touched().push_back(this);
}

void SharedMemory::spoil() {
  for (SharedMemory* shared : touched()) {
    std::memset(shared->data_, kGarbage, shared->bytes_);
    shared->touched_ = false;
  }
  touched().clear();
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
int index_of_thread() { return block.current().index; }
size_t dynamic_shared_bytes() { return block.shared_bytes(); }
uint64_t block_number() { return block.number(); }
uint64_t random_of_block() { return block.random(); }
void wait_until(std::function<bool()> ready, const char* doing) { block.wait_until(std::move(ready), doing); }
void later(std::function<void()> work) { block.later(std::move(work)); }
void fail_block(std::string problem) { block.fail(std::move(problem)); }

const Lanes& warp_exchange(unsigned mask, WarpCall call, const void* value, size_t bytes) {
  Fiber& fiber = block.current();
  fiber.mask = mask;
  fiber.call = call;
  fiber.brought[0] = fiber.brought[1] = 0;
  std::memcpy(fiber.brought, value, bytes);
  block.suspend(State::AtWarp);
  return *fiber.lanes;
}

}  // namespace rz::emulator
