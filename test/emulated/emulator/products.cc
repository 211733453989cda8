// Products of warpgroups. Each thread computes its own part; the warp meets in each instruction, as it must.
#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "block.h"
#include "core/dtype.h"
#include "sm90.h"

namespace rz::emulator {
namespace {

constexpr int kDepth = 16;  // of an instruction
constexpr uint32_t kGarbage = 0xffffffff;

struct Operand {
  uint32_t address, leading, stride, span;
  bool some_unfenced = has_unfenced();
  explicit Operand(uint64_t bits)
      : address(static_cast<uint32_t>(bits & 0x3fff) << 4), leading(static_cast<uint32_t>(bits >> 16 & 0x3fff) << 4),
        stride(static_cast<uint32_t>(bits >> 32 & 0x3fff) << 4) {
    const auto mode = static_cast<uint32_t>(bits >> 62);
    if (mode != 1 && mode != 2) fail_block("a descriptor of wgmma has a swizzle that the emulator does not know");
    span = mode == 1 ? 128 : 64;
  }
  // Value k of row or column `i`, which lie in memory one after the other along k; or, across, along i.
  uint16_t at(uint32_t i, uint32_t k, bool across) const {
    const uint32_t offset = across ? i * 2 / span * leading + i * 2 % span + k / 8 * stride + k % 8 * span : i / 8 * stride + i % 8 * span + k * 2;
    const unsigned char* from = in_shared(static_cast<uint32_t>(swizzled(address + offset, span)), 2);
    if (some_unfenced && !is_fenced(reinterpret_cast<uintptr_t>(from))) fail_block("wgmma reads what a thread wrote to shared memory without shared_written()");
    uint16_t value;
    std::memcpy(&value, from, 2);
    return value;
  }
};

struct Product {
  WarpgroupProduct asked;
  float left[2][kDepth];        // of the thread's two rows, if a is in registers
  uint32_t a[4];
  std::vector<float> sums;      // what it adds to d, once computed
};

struct Registers {
  std::vector<float> value;
  int products = 0;  // under way
};

struct Thread {
  uint64_t block = 0;
  bool fenced = false;
  std::vector<std::vector<Product>> groups;  // the last one is open
  std::map<float*, Registers> results;
};

Thread& of_thread() {
  static thread_local std::vector<Thread> threads(1024);
  Thread& thread = threads[static_cast<size_t>(index_of_thread())];
  if (thread.block != block_number()) {
    thread = {};
    thread.block = block_number();
    thread.groups.emplace_back();
  }
  return thread;
}

float widened(uint16_t bits, bool bf16) { return bf16 ? to_float(rz::bf16{bits}) : to_float(rz::f16{bits}); }

// Of the whole warp.
void meet(uint64_t first, uint64_t second, const char* instruction) {
  const uint64_t own[2] = {first, second};
  const Lanes& lanes = warp_exchange(0xffffffff, WarpCall::Product, own, sizeof own);
  for (const auto& value : lanes.value)
    if (value[0] != first || value[1] != second) fail_block(std::string("lanes of a warp disagree in ") + instruction);
}

void compute(Product& product) {
  const WarpgroupProduct& asked = product.asked;
  const int lane = index_of_thread() % 32, warp = index_of_thread() / 32 % 4, g = lane / 4, t = lane % 4;
  if (!asked.a) {
    const Operand a(asked.a_descriptor);
    for (uint32_t half = 0; half < 2; ++half)
      for (uint32_t k = 0; k < kDepth; ++k)
        product.left[half][k] = widened(a.at(static_cast<uint32_t>(warp * 16 + g) + half * 8, k, false), asked.bf16);
  }
  const Operand b(asked.b_descriptor);
  product.sums.assign(static_cast<size_t>(asked.columns / 2), 0.0f);
  for (int n = 0; n < asked.columns / 8; ++n)
    for (int e = 0; e < 2; ++e)
      for (uint32_t k = 0; k < kDepth; ++k) {
        const float right = widened(b.at(static_cast<uint32_t>(n * 8 + t * 2 + e), k, asked.transposed), asked.bf16);
        for (int half = 0; half < 2; ++half) product.sums[static_cast<size_t>(n * 4 + half * 2 + e)] += product.left[half][k] * right;
      }
}

void deliver(Thread& thread, Product& product) {
  if (product.sums.empty()) compute(product);
  if (product.asked.a && std::memcmp(product.a, product.asked.a, sizeof product.a) != 0)
    fail_block("registers of the left operand were written while a product was under way");
  Registers& result = thread.results.at(product.asked.d);
  for (size_t i = 0; i < product.sums.size(); ++i) result.value[i] = (product.asked.add ? result.value[i] : 0.0f) + product.sums[i];
  if (--result.products > 0) return;
  for (size_t i = 0; i < result.value.size(); ++i) {
    uint32_t bits;
    std::memcpy(&bits, product.asked.d + i, sizeof bits);
    if (bits != kGarbage) fail_block("registers of a result were written while a product was under way");
    product.asked.d[i] = result.value[i];
  }
  thread.results.erase(product.asked.d);
}

}  // namespace

void wgmma(const WarpgroupProduct& asked) {
  Thread& thread = of_thread();
  if (!thread.fenced) fail_block("wgmma without wgmma_fence since registers could be written");
  Product product{asked, {}, {}, {}};
  if (asked.a) {
    std::memcpy(product.a, asked.a, sizeof product.a);
    const Lanes& lanes = warp_exchange(0xffffffff, WarpCall::Product, asked.a, sizeof product.a);
    const int row = index_of_thread() % 32 / 4;
    for (int half = 0; half < 2; ++half)
      for (int k = 0; k < kDepth; ++k) {
        uint32_t words[4];
        std::memcpy(words, lanes.value[row * 4 + k % 8 / 2], sizeof words);
        product.left[half][k] = widened(static_cast<uint16_t>(words[k / 8 * 2 + half] >> k % 2 * 16), asked.bf16);
      }
  }
  meet(asked.a ? 0 : asked.a_descriptor, asked.b_descriptor, "wgmma");
  const auto count = static_cast<size_t>(asked.columns / 2);
  Registers& result = thread.results[asked.d];
  if (result.products++ == 0) {
    result.value.assign(asked.d, asked.d + count);
    std::memset(asked.d, 0xff, count * sizeof(float));
  }
  if (random_of_block() % 2) compute(product);
  thread.groups.back().push_back(std::move(product));
}

void wgmma_fence() {
  meet(0, 0, "wgmma_fence");
  of_thread().fenced = true;
}

void wgmma_commit() {
  meet(1, 0, "wgmma_commit");
  of_thread().groups.emplace_back();
}

void wgmma_wait(int pending, std::initializer_list<float*> results) {
  meet(2, static_cast<uint64_t>(pending), "wgmma_wait");
  Thread& thread = of_thread();
  thread.fenced = false;
  while (thread.groups.size() > static_cast<size_t>(pending) + 1) {
    for (Product& product : thread.groups.front()) {
      if (std::find(results.begin(), results.end(), product.asked.d) == results.end())
        fail_block("wgmma_wait does not name a result of the products that it waits for");
      deliver(thread, product);
    }
    thread.groups.erase(thread.groups.begin());
  }
}

}  // namespace rz::emulator
