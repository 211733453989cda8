// all_to_all of a ShmGroup. Every rank's counts are in the control segment beside its header, so whoever has entered knows
// where its part of each peer's input begins, and how many rounds the mailboxes of private memory take.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "comm/shm_group.h"
#include "comm/shm_limits.h"
#include "core/progress.h"

namespace rz::comm {

void ShmGroup::do_all_to_all(Operand out, Operand in, Counts send_counts, Counts recv_counts, Stream* stream) {
  submit_collective("all_to_all", stream, in, [this, out, in, send_counts = std::move(send_counts), recv_counts = std::move(recv_counts)](const Doing& doing) {
    run_all_to_all(doing, out, in, send_counts, recv_counts);
  });
}

void ShmGroup::compare_counts(const Doing& doing, int a, int b) {
  const int low = std::min(a, b), high = std::max(a, b);
  for (auto [from, to] : {std::pair(low, high), std::pair(high, low)}) {
    const int64_t sent = control_.counts(from, doing.sequence)[to], expected = control_.counts(to, doing.sequence)[size() + from];
    if (sent == expected) continue;
    raise_mismatch(doing, "is all_to_all that sends " + std::to_string(sent) + " elements from rank " + std::to_string(world_rank(from)) + " to rank " +
                              std::to_string(world_rank(to)) + ", which expects " + std::to_string(expected));
  }
}

void ShmGroup::run_all_to_all(const Doing& doing, const Operand& out, const Operand& in, const Counts& send_counts, const Counts& recv_counts) {
  int64_t* own_counts = control_.counts(rank(), doing.sequence);
  std::copy(recv_counts.begin(), recv_counts.end(), std::copy(send_counts.begin(), send_counts.end(), own_counts));
  Header own = header(doing, Operation::AllToAll, 0, in.dtype, out.dtype);
  expose(own, in);
  // A mailbox has a place of `chunk` elements for each receiver.
  const int64_t width = size_of(in.dtype), chunk = static_cast<int64_t>(kHalf) / size() / width;
  auto sends = [&](int from) { return control_.counts(from, doing.sequence); };
  auto before = [&](const int64_t* counts, int r) { return std::accumulate(counts, counts + r, int64_t{0}); };
  int64_t rounds = 1;
  for (int64_t k = 0; k < rounds; ++k) {
    const int64_t begin = k * chunk;
    auto count_of = [&](int64_t whole) { return std::clamp<int64_t>(whole - begin, 0, chunk); };
    if (own.segment < 0) {
      int64_t end = 0;
      for (int r = 0; r < size(); ++r) {
        if (r != rank() && count_of(send_counts[static_cast<size_t>(r)]) > 0) end = r * chunk + count_of(send_counts[static_cast<size_t>(r)]);
      }
      std::byte* box = mailbox(static_cast<size_t>(end * width));
      for (int r = 0; r < size(); ++r) {
        const int64_t count = count_of(send_counts[static_cast<size_t>(r)]);
        if (r != rank() && count > 0) std::memcpy(box + r * chunk * width, in.at(before(send_counts.data(), r) + begin), static_cast<size_t>(count * width));
      }
    }
    if (k == 0) {
      enter(doing, own);
      // All of them, also those of others: a mismatch is everybody's error.
      for (int a = 0; a < size(); ++a) {
        for (int b = a + 1; b < size(); ++b) compare_counts(doing, a, b);
        if (header_of(a, doing).segment >= 0) continue;
        for (int r = 0; r < size(); ++r) rounds = std::max(rounds, r == a ? 1 : (sends(a)[r] + chunk - 1) / chunk);
      }
    } else {
      sync(doing);
    }
    // Each rank starts at its own part, so that no two read the same memory at the same time.
    for (int i = 0; i < size(); ++i) {
      const int peer = (rank() + i) % size();
      const int64_t whole = recv_counts[static_cast<size_t>(peer)], at = before(recv_counts.data(), peer);
      const bool direct = peer == rank() || header_of(peer, doing).segment >= 0;
      const int64_t count = direct ? (k == 0 ? whole : 0) : count_of(whole);
      if (count == 0) continue;
      const int64_t first = before(sends(peer), rank());
      const void* source = peer == rank() ? in.at(first) : read(peer, doing, first * width, rank() * chunk * width);
      std::memcpy(out.at(at + (direct ? 0 : begin)), source, static_cast<size_t>(count * width));
      progress::add_bytes(static_cast<uint64_t>(count * width));
    }
    next_mail();
  }
  if (any_direct(doing)) sync(doing);
}

}  // namespace rz::comm
