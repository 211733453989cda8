// The collectives of HostsGroup. Each: a window on the host and a greeting between hosts, in which calls are compared; then pieces.
// Pieces have the same sizes on all hosts, for each is a message. What comes over a connection is shown to the host by its rank.
#include <algorithm>
#include <cstring>

#include "comm/hosts/hosts_group.h"
#include "comm/reduce.h"
#include "comm/shm_limits.h"
#include "core/progress.h"
#include "core/task_log.h"

namespace rz::comm {
namespace {

ReduceOp within_host(ReduceOp op) { return op == ReduceOp::Avg ? ReduceOp::Sum : op; }

size_t bytes_of(int64_t count, DType dtype) { return static_cast<size_t>(count * size_of(dtype)); }

// Elements [begin, end) of piece `k`.
struct Piece {
  int64_t begin, count;
};

std::vector<Piece> pieces_of(int64_t numel, int64_t step) {
  std::vector<Piece> pieces;
  for (int64_t begin = 0; begin < numel || begin == 0; begin += step) pieces.push_back({begin, std::min(step, numel - begin)});
  return pieces;
}

}  // namespace

void HostsGroup::do_broadcast(Operand tensor, int root, Stream* stream) {
  submit(collectives_, "broadcast", stream, tensor.work(), [this, tensor, root](const Doing& doing) { run_broadcast(doing, tensor, root); });
}

void HostsGroup::do_scatter(Operand out, Operand in, int root, Stream* stream) {
  submit(collectives_, "scatter", stream, out.work(), [this, out, in, root](const Doing& doing) { run_scatter(doing, out, in, root); });
}

void HostsGroup::do_all_reduce(Operand tensor, ReduceOp op, Stream* stream) {
  submit(collectives_, "all_reduce", stream, tensor.work(), [this, tensor, op](const Doing& doing) { run_all_reduce(doing, tensor, op); });
}

void HostsGroup::do_all_gather(Operand out, Operand in, Stream* stream) {
  submit(collectives_, "all_gather", stream, out.work(), [this, out, in](const Doing& doing) { run_all_gather(doing, out, in); });
}

void HostsGroup::do_reduce_scatter(Operand out, Operand in, ReduceOp op, bool accumulate, Stream* stream) {
  submit(collectives_, "reduce_scatter", stream, in.work(), [this, out, in, op, accumulate](const Doing& doing) { run_reduce_scatter(doing, out, in, op, accumulate); });
}

void HostsGroup::do_barrier(Stream* stream) {
  submit(collectives_, "barrier", stream, {}, [this](const Doing& doing) { run_barrier(doing); });
}

void HostsGroup::run_barrier(const Doing& doing) {
  const Header own = header(doing, Operation::Barrier, 0, DType::UInt8, DType::UInt8);
  Window window(local_.get(), doing.operation, own, {});
  if (own_index() == 0) greet(doing, own, column(0));
  window.close();
}

const std::byte* HostsGroup::reduce_host(Window& window, std::byte* scratch, const std::byte* own, int64_t place, DType dtype, int64_t count, ReduceOp op) {
  if (window.size() == 1) return own;
  std::vector<const void*> sources(static_cast<size_t>(window.size()));
  for (int peer = 0; peer < window.size(); ++peer)
    sources[static_cast<size_t>(peer)] = peer == window.rank() ? own : window.at(peer, place * size_of(dtype));
  reduce(scratch, dtype, sources.data(), dtype, window.size(), count, within_host(op), false);
  return scratch;
}

// From host to host in a chain, so that each link carries the tensor once.
void HostsGroup::run_broadcast(const Doing& doing, const Operand& tensor, int root) {
  const Header own = header(doing, Operation::Broadcast, tensor.numel, tensor.dtype, tensor.dtype, root);
  Window window(local_.get(), doing.operation, own, tensor);
  const int hosts = layout_.hosts(), first = layout_.host_of(root), index = layout_.index_of(root);
  auto holder_of = [&](int host) { return host == first ? root : layout_.partner(host, index); };
  const int holder = holder_of(own_host()), position = (own_host() - first + hosts) % hosts;
  const int before = position > 0 ? holder_of((own_host() + hosts - 1) % hosts) : -1, after = position + 1 < hosts ? holder_of((own_host() + 1) % hosts) : -1;
  const std::vector<Piece> pieces = pieces_of(tensor.numel, static_cast<int64_t>(kHalf) / size_of(tensor.dtype));
  std::vector<LinkMessage> arriving, leaving;
  if (rank() == holder) {
    std::vector<int> peers;
    for (int peer : {before, after})
      if (peer >= 0 && std::find(peers.begin(), peers.end(), peer) == peers.end()) peers.push_back(peer);
    greet(doing, own, peers);
    if (before >= 0)
      for (const Piece& piece : pieces) arriving.push_back(receive(before, tensor.at(piece.begin), bytes_of(piece.count, tensor.dtype)));
  }
  for (size_t k = 0; k < pieces.size(); ++k) {
    const auto [begin, count] = pieces[k];
    const size_t bytes = bytes_of(count, tensor.dtype);
    if (rank() == holder) {
      if (before >= 0) link().wait(doing, arriving[k]);
      if (after >= 0) leaving.push_back(send(after, tensor.at(begin), bytes));
      if (!window.is_direct()) std::memcpy(window.stage(bytes), tensor.at(begin), bytes);
    }
    window.meet();
    if (rank() != holder) std::memcpy(tensor.at(begin), window.at(layout_.index_of(holder), window.is_direct() ? begin * size_of(tensor.dtype) : 0), bytes);
    window.next_piece();
  }
  wait(doing, leaving);
  window.close();
}

// The root sends every rank of another host its part, in its own dtype.
void HostsGroup::run_scatter(const Doing& doing, const Operand& out, const Operand& in, int root) {
  const bool is_root = rank() == root, is_near = layout_.host_of(root) == own_host();
  const Header own = header(doing, Operation::Scatter, out.numel, is_root ? in.dtype : out.dtype, out.dtype, root);
  Window window(local_.get(), doing.operation, own, is_root ? in : Operand{});
  auto step_of = [&](DType dtype) { return static_cast<int64_t>(kHalf) / num_local() / size_of(dtype); };
  std::vector<LinkMessage> messages;
  if (is_root) {
    std::vector<int> others;
    for (int r = 0; r < size(); ++r)
      if (layout_.host_of(r) != own_host()) others.push_back(r);
    greet(doing, own, others);
    for (int r : others) messages.push_back(send(r, in.at(r * out.numel), bytes_of(out.numel, in.dtype)));
    cast_copy(out.data, out.dtype, in.at(rank() * out.numel), in.dtype, out.numel);
  } else if (!is_near) {
    const auto dtype = static_cast<DType>(greet(doing, own, {root})[0].in_dtype);
    const size_t bytes = bytes_of(out.numel, dtype);
    std::byte* into = dtype == out.dtype ? out.data : scratch(incoming_, bytes);
    messages.push_back(receive(root, into, bytes));
    wait(doing, messages);
    cast_copy(out.data, out.dtype, into, dtype, out.numel);
  }
  if (is_near && window.size() > 1) {
    const int holder = layout_.index_of(root);
    const auto dtype = static_cast<DType>(window.header_of(holder).in_dtype);
    if (window.is_direct()) {
      if (!is_root) cast_copy(out.data, out.dtype, window.at(holder, rank() * out.numel * size_of(dtype)), dtype, out.numel);
    } else {
      const int64_t step = step_of(dtype);
      for (const auto& [begin, count] : pieces_of(out.numel, step)) {
        if (is_root) {
          std::byte* box = window.stage(bytes_of(step * num_local(), dtype));
          for (int r : layout_.ranks_on(own_host())) std::memcpy(box + bytes_of(layout_.index_of(r) * step, dtype), in.at(r * out.numel + begin), bytes_of(count, dtype));
        }
        window.meet();
        if (!is_root) cast_copy(out.at(begin), out.dtype, window.at(holder, own_index() * step * size_of(dtype)), dtype, count);
        window.next_piece();
      }
    }
  }
  wait(doing, messages);
  window.close();
}

void HostsGroup::run_all_gather(const Doing& doing, const Operand& out, const Operand& in) {
  const Header own = header(doing, Operation::AllGather, in.numel, in.dtype, out.dtype);
  Window window(local_.get(), doing.operation, own, out);
  greet(doing, own, partners());
  const int64_t n = in.numel, width = size_of(out.dtype), step = std::max<int64_t>(1, static_cast<int64_t>(piece_bytes()) / size() / width);
  const std::vector<Piece> pieces = pieces_of(n, step);
  const std::vector<int> from = givers(), to = takers();
  // Parts that other ranks of the host have brought, those of the next one first, so that no two read the same memory.
  auto copy_others = [&](auto place_of, auto into, int64_t count) {
    for (int i = 0; i < size(); ++i) {
      const int part = (rank() + i) % size(), by = bringer(part);
      if (by != rank() && count > 0) std::memcpy(into(part), window.at(layout_.index_of(by), place_of(part) * width), bytes_of(count, out.dtype));
    }
  };
  std::vector<LinkMessage> arriving, leaving;
  if (window.is_direct()) {
    cast_copy(out.at(rank() * n), out.dtype, in.data, in.dtype, n);
    for (const auto& [begin, count] : pieces) {
      for (int r : from) arriving.push_back(receive(r, out.at(r * n + begin), bytes_of(count, out.dtype)));
      for (int r : to) leaving.push_back(send(r, out.at(rank() * n + begin), bytes_of(count, out.dtype)));
    }
    wait(doing, arriving);
    window.meet();
    copy_others([&](int part) { return part * n; }, [&](int part) { return out.at(part * n); }, n);
    wait(doing, leaving);
    window.close();
    return;
  }
  for (const auto& [begin, count] : pieces) {
    std::byte* box = window.stage(bytes_of(step * size(), out.dtype));
    cast_copy(box + bytes_of(rank() * step, out.dtype), out.dtype, in.at(begin), in.dtype, count);
    for (int r : from) arriving.push_back(receive(r, box + bytes_of(r * step, out.dtype), bytes_of(count, out.dtype)));
    for (int r : to) leaving.push_back(send(r, box + bytes_of(rank() * step, out.dtype), bytes_of(count, out.dtype)));
    wait(doing, arriving);
    window.meet();
    std::memcpy(out.at(rank() * n + begin), box + bytes_of(rank() * step, out.dtype), bytes_of(count, out.dtype));
    for (int r : from) std::memcpy(out.at(r * n + begin), box + bytes_of(r * step, out.dtype), bytes_of(count, out.dtype));
    copy_others([&](int part) { return part * step; }, [&, begin = begin](int part) { return out.at(part * n + begin); }, count);
    wait(doing, leaving);
    window.next_piece();
  }
  window.close();
}

void HostsGroup::run_reduce_scatter(const Doing& doing, const Operand& out, const Operand& in, ReduceOp op, bool accumulate) {
  const Header own = header(doing, Operation::ReduceScatter, out.numel, in.dtype, out.dtype, 0, op);
  Window window(local_.get(), doing.operation, own, in);
  greet(doing, own, partners());
  const int64_t n = out.numel, width = size_of(in.dtype), step = std::max<int64_t>(1, static_cast<int64_t>(piece_bytes()) / size() / width);
  // What is for a rank of another host is reduced here by the rank to which that one would give its own part.
  const std::vector<int> to = givers(), from = takers();
  const size_t slot = bytes_of(step, in.dtype);
  std::byte* outgoing = scratch(outgoing_, 2 * to.size() * slot);
  std::byte* incoming = scratch(incoming_, 2 * from.size() * slot);
  std::byte* sums = scratch(own_, 2 * slot);
  struct Pending {
    Piece piece;
    const std::byte* own;
    const std::byte* incoming;
    std::vector<LinkMessage> arriving, leaving;
  };
  std::optional<Pending> pending;
  std::vector<const void*> sources(static_cast<size_t>(layout_.hosts()));
  auto finish = [&](Pending& done) {
    wait(doing, done.arriving);
    for (size_t host = 0, i = 0; host < sources.size(); ++host)
      sources[host] = static_cast<int>(host) == own_host() ? done.own : done.incoming + slot * i++;
    reduce(out.at(done.piece.begin), out.dtype, sources.data(), in.dtype, layout_.hosts(), done.piece.count, op, accumulate, size());
    wait(doing, done.leaving);
  };
  size_t half = 0;
  for (const Piece& piece : pieces_of(n, step)) {
    const auto [begin, count] = piece;
    const size_t bytes = bytes_of(count, in.dtype);
    if (!window.is_direct()) {
      std::byte* box = window.stage(slot * static_cast<size_t>(size()));
      for (int r = 0; r < size(); ++r) std::memcpy(box + slot * static_cast<size_t>(r), in.at(r * n + begin), bytes);
      window.meet();
    }
    auto place = [&, begin = begin](int r) { return window.is_direct() ? r * n + begin : r * step; };
    Pending next{piece, nullptr, incoming + half * from.size() * slot, {}, {}};
    for (size_t i = 0; i < from.size(); ++i) next.arriving.push_back(receive(from[i], incoming + (half * from.size() + i) * slot, bytes));
    for (size_t i = 0; i < to.size(); ++i) {
      const std::byte* sum = reduce_host(window, outgoing + (half * to.size() + i) * slot, in.at(to[i] * n + begin), place(to[i]), in.dtype, count, op);
      next.leaving.push_back(send(to[i], sum, bytes));
    }
    next.own = reduce_host(window, sums + half * slot, in.at(rank() * n + begin), place(rank()), in.dtype, count, op);
    if (pending) finish(*pending);
    pending = std::move(next);
    half ^= 1;
    window.next_piece();
  }
  finish(*pending);
  window.close();
}

// Small: one rank of each host sums everything. Large: the ranks of each index reduce and gather a range of each piece over the
// hosts; whoever has no counterpart on every host only adds and copies.
void HostsGroup::run_all_reduce(const Doing& doing, const Operand& tensor, ReduceOp op) {
  const Header own = header(doing, Operation::AllReduce, tensor.numel, tensor.dtype, tensor.dtype, 0, op);
  Window window(local_.get(), doing.operation, own, tensor);
  if (tensor.bytes() <= kSmall) return reduce_small(doing, window, tensor, op);
  const int hosts = layout_.hosts(), columns = layout_.fewest(), owners = hosts * columns;
  const bool owns = own_index() < columns;
  const std::vector<int> peers = owns ? column(own_index()) : std::vector<int>{};
  greet(doing, own, peers);
  const int64_t width = size_of(tensor.dtype), step = std::max<int64_t>(owners, static_cast<int64_t>(piece_bytes()) / width);
  const size_t slot = bytes_of((step + owners - 1) / owners, tensor.dtype);
  std::byte* outgoing = scratch(outgoing_, 2 * peers.size() * slot);
  std::byte* incoming = scratch(incoming_, 2 * peers.size() * slot);
  std::byte* sum = scratch(own_, slot);
  struct Block {
    Piece piece;
    size_t half;
    std::byte* base;  // of the piece: in the tensor, or in the mailbox
    std::vector<LinkMessage> arriving, leaving;
  };
  auto edge = [&](const Block& block, int owner) { return block.piece.count * owner / owners; };
  auto owner_of = [&](int rank) { return layout_.host_of(rank) * columns + layout_.index_of(rank); };
  auto place = [&](const Block& block, int owner) { return (window.is_direct() ? block.piece.begin : 0) + edge(block, owner); };
  auto length = [&](const Block& block, int owner) { return edge(block, owner + 1) - edge(block, owner); };
  auto data = [&](const Block& block, int owner) { return block.base + bytes_of(edge(block, owner), tensor.dtype); };

  auto begin = [&](const Piece& piece, size_t half) {
    Block block{piece, half, tensor.at(piece.begin), {}, {}};
    if (!window.is_direct()) {
      block.base = window.stage(bytes_of(piece.count, tensor.dtype));
      std::memcpy(block.base, tensor.at(piece.begin), bytes_of(piece.count, tensor.dtype));
      window.meet();
    }
    const int mine = owner_of(rank());
    for (size_t i = 0; i < peers.size(); ++i) {
      const int theirs = owner_of(peers[i]);
      const size_t at = (half * peers.size() + i) * slot;
      block.arriving.push_back(receive(peers[i], incoming + at, bytes_of(length(block, mine), tensor.dtype)));
      const std::byte* part = reduce_host(window, outgoing + at, data(block, theirs), place(block, theirs), tensor.dtype, length(block, theirs), op);
      block.leaving.push_back(send(peers[i], part, bytes_of(length(block, theirs), tensor.dtype)));
    }
    return block;
  };
  auto finish = [&](Block& block) {
    if (owns) {
      const int mine = owner_of(rank());
      wait(doing, block.arriving);
      std::vector<const void*> sources(static_cast<size_t>(hosts));
      for (int host = 0, i = 0; host < hosts; ++host) {
        sources[static_cast<size_t>(host)] = host == own_host()
                                                 ? reduce_host(window, sum, data(block, mine), place(block, mine), tensor.dtype, length(block, mine), op)
                                                 : incoming + (block.half * peers.size() + static_cast<size_t>(i++)) * slot;
      }
      reduce(data(block, mine), tensor.dtype, sources.data(), tensor.dtype, hosts, length(block, mine), op, false, size());
      wait(doing, block.leaving);
      for (int peer : peers) {
        block.arriving.push_back(receive(peer, data(block, owner_of(peer)), bytes_of(length(block, owner_of(peer)), tensor.dtype), kReduced));
        block.leaving.push_back(send(peer, data(block, mine), bytes_of(length(block, mine), tensor.dtype), kReduced));
      }
      wait(doing, block.arriving);
    }
    window.meet();
    for (int owner = 0; owner < owners; ++owner) {
      const int by = owner % columns;
      const bool is_here = by == own_index() && window.is_direct();
      if (is_here || length(block, owner) == 0) continue;
      const std::byte* from = by == own_index() ? data(block, owner) : window.at(by, place(block, owner) * width);
      std::memcpy(tensor.at(block.piece.begin + edge(block, owner)), from, bytes_of(length(block, owner), tensor.dtype));
    }
    wait(doing, block.leaving);
    window.next_piece();
  };
  // Where memory is read in place, the next piece is on its way while one is finished.
  std::optional<Block> ahead;
  size_t half = 0;
  for (const Piece& piece : pieces_of(tensor.numel, step)) {
    Block block = begin(piece, half);
    half ^= 1;
    if (!window.is_direct()) {
      finish(block);
      continue;
    }
    if (ahead) finish(*ahead);
    ahead = std::move(block);
  }
  if (ahead) finish(*ahead);
  window.close();
}

void HostsGroup::reduce_small(const Doing& doing, Window& window, const Operand& tensor, ReduceOp op) {
  const size_t bytes = tensor.bytes();
  const bool is_staged = !window.is_direct();
  if (is_staged) {
    std::memcpy(window.stage(bytes), tensor.data, bytes);
    window.meet();
  }
  if (own_index() == 0) {
    const std::vector<int> peers = column(0);
    greet(doing, header(doing, Operation::AllReduce, tensor.numel, tensor.dtype, tensor.dtype, 0, op), peers);
    std::byte *sum = scratch(outgoing_, bytes), *incoming = scratch(incoming_, bytes * peers.size());
    if (const std::byte* own = reduce_host(window, sum, tensor.data, 0, tensor.dtype, tensor.numel, op); own != sum) std::memcpy(sum, own, bytes);
    std::vector<LinkMessage> messages;
    for (size_t i = 0; i < peers.size(); ++i) messages.push_back(receive(peers[i], incoming + bytes * i, bytes));
    for (int peer : peers) messages.push_back(send(peer, sum, bytes));
    wait(doing, messages);
    std::vector<const void*> sources;
    for (int host = 0, i = 0; host < layout_.hosts(); ++host) sources.push_back(host == own_host() ? sum : incoming + bytes * static_cast<size_t>(i++));
    reduce(tensor.data, tensor.dtype, sources.data(), tensor.dtype, layout_.hosts(), tensor.numel, op, false, size());
  }
  window.next_piece();
  if (is_staged && own_index() == 0) std::memcpy(window.stage(bytes), tensor.data, bytes);
  window.meet();
  if (own_index() != 0) std::memcpy(tensor.data, window.at(0, 0), bytes);
  window.next_piece();
  window.close();
}

}  // namespace rz::comm
