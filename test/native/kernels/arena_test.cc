#include <map>
#include <random>
#include <set>

#include "check.h"
#include "core/arena.h"

using rz::Arena;

// Random blocks never overlap, and what was released coalesces to the ranges that were added.
static void test_random() {
  Arena arena;
  auto* base = reinterpret_cast<std::byte*>(uintptr_t{1} << 40);
  const size_t range = 1 << 20;
  arena.add(base, range);
  arena.add(base + range, range);  // touches the first, and stays apart
  std::mt19937 random(7);
  std::map<std::byte*, Arena::Block> used;
  size_t in_use = 0, most = 0;
  bool apart = true, within = true, counted = true;
  for (int i = 0; i < 20000; ++i) {
    Arena::Block block;
    if (random() % 2 && arena.take(512 * (1 + random() % 200), block)) {
      auto next = used.lower_bound(block.data);
      apart &= next == used.end() || block.data + block.bytes <= next->first;
      apart &= next == used.begin() || std::prev(next)->first + std::prev(next)->second.bytes <= block.data;
      size_t from = static_cast<size_t>(block.data - base), to = from + block.bytes;
      within &= to <= 2 * range && from / range == (to - 1) / range;
      in_use += block.bytes;
      used[block.data] = block;
    } else if (!used.empty()) {
      auto gone = std::next(used.begin(), random() % used.size());
      in_use -= gone->second.bytes;
      arena.release(gone->second);
      used.erase(gone);
    }
    most = std::max(most, in_use);
    counted &= arena.backed() >= most && arena.backed() <= 2 * range;
  }
  report("blocks do not overlap", apart);
  report("blocks lie within one range", within);
  report("what was used stays counted", counted);

  size_t dropped = 0, removed = 0;
  arena.trim([&](std::byte*, size_t bytes) { dropped += bytes; }, [&](std::byte*, size_t bytes) { removed += bytes; });
  report("trim leaves what is in use", arena.backed() == in_use && dropped + removed <= 2 * range - in_use);
  for (auto& [data, block] : used) arena.release(block);
  Arena::Block whole;
  report("all coalesces again", removed == range || (arena.take(range, whole) && whole.bytes == range));
  if (whole.data) arena.release(whole);
  arena.trim([&](std::byte*, size_t) { apart = false; }, [&](std::byte*, size_t bytes) { removed += bytes; });
  report("trim removes unused ranges", removed == 2 * range && arena.backed() == 0 && apart);
}

// A block made of several waits for what each of them waited for, once for each stream.
static void test_events() {
  Arena arena;
  auto* base = reinterpret_cast<std::byte*>(uintptr_t{1} << 40);
  auto* one = reinterpret_cast<rz::Stream*>(0x10);
  auto* other = reinterpret_cast<rz::Stream*>(0x20);
  arena.add(base, 4096);
  Arena::Block a, b, rest, all;
  arena.take(1024, a), arena.take(1024, b), arena.take(2048, rest);
  a.pending = {{one, 5}, {other, 2}};
  b.pending = {{one, 3}};
  rest.pending = {{other, 9}};
  arena.release(a), arena.release(rest);
  report("no fit across a block in use", !arena.take(3072, all));
  arena.release(b);
  report("neighbours coalesce", arena.take(4096, all) && all.data == base);
  std::map<rz::Stream*, uint64_t> pending;
  for (const rz::Event& event : all.pending) pending[event.stream] = event.position;
  report("the latest event of each stream", all.pending.size() == 2 && pending[one] == 5 && pending[other] == 9);
}

static void test_best_fit() {
  Arena arena;
  auto* base = reinterpret_cast<std::byte*>(uintptr_t{1} << 40);
  arena.add(base, 1 << 20);
  Arena::Block holes[2], walls[2], block;
  arena.take(8192, holes[0]), arena.take(512, walls[0]), arena.take(2048, holes[1]), arena.take(512, walls[1]);
  for (auto& hole : holes) arena.release(hole);
  report("the smallest hole that fits", arena.take(2048, block) && block.data == holes[1].data);
  report("then a larger one, not new memory", arena.take(1024, block) && block.data == holes[0].data);
}

// Whole pages leave a range, which falls into those around them; what is left of their blocks stays and keeps its events.
static void test_cut() {
  constexpr size_t kPage = 4096;
  Arena arena;
  auto* base = reinterpret_cast<std::byte*>(uintptr_t{1} << 40);
  auto* stream = reinterpret_cast<rz::Stream*>(0x10);
  arena.add(base, 8 * kPage);
  Arena::Block first, free, last, block;
  arena.take(512, first), arena.take(5 * kPage, free), arena.take(3 * kPage - 512, last);
  free.pending = {{stream, 5}};
  arena.release(free);
  report("whole pages of free blocks", arena.free_pages(kPage) == 4 * kPage);
  std::vector<Arena::Block> cut;
  report("as many as are wanted are cut", arena.cut(kPage, 3 * kPage, cut) == 3 * kPage && cut.size() == 1 && cut[0].data == base + kPage &&
                                              cut[0].bytes == 3 * kPage && cut[0].pending.size() == 1 && arena.free_pages(kPage) == kPage);
  arena.release(first), arena.release(last);
  report("no block goes across the hole", !arena.take(5 * kPage, block) && arena.take(4 * kPage, block) && block.data == base + 4 * kPage &&
                                              block.pending.size() == 1);
  report("what was before it is a range of its own", arena.take(kPage, block) && block.data == base);
}

static void test_all() {
  test_cut();
  test_random();
  test_events();
  test_best_fit();
}
static Test registered(test_all);
