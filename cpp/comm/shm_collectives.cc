// The collectives of ShmGroup. Each: enter with a header (and, from private memory, a first chunk), then read what the
// peers expose: whole where all of it is shared, chunk by chunk otherwise. `direct` calls end with one more round.
#include <algorithm>
#include <cstring>

#include "comm/shm_group.h"
#include "comm/shm_limits.h"
#include "core/progress.h"

namespace rz::comm {
namespace {

constexpr int32_t kWhole = -2;  // in a header: no segment, but memory that all ranks map

int64_t chunks_of(int64_t numel, int64_t chunk) { return std::max<int64_t>(1, (numel + chunk - 1) / chunk); }

}  // namespace

void ShmGroup::submit_collective(const char* operation, Stream* stream, const Operand& whole, std::function<void(const Doing&)> body) {
  submit(collectives_, operation, stream, [this, work = whole.work(), body = std::move(body)](const Doing& doing) {
    describe(work);
    body(doing);
    control_.slot(rank()).finished.store(static_cast<uint32_t>(doing.sequence), std::memory_order_release);
  });
}

void ShmGroup::do_broadcast(Operand tensor, int root, Stream* stream) {
  submit_collective("broadcast", stream, tensor, [this, tensor, root](const Doing& doing) { run_broadcast(doing, tensor, root); });
}

void ShmGroup::do_scatter(Operand out, Operand in, int root, Stream* stream) {
  submit_collective("scatter", stream, out, [this, out, in, root](const Doing& doing) { run_scatter(doing, out, in, root); });
}

void ShmGroup::do_all_reduce(Operand tensor, ReduceOp op, Stream* stream) {
  submit_collective("all_reduce", stream, tensor, [this, tensor, op](const Doing& doing) { run_all_reduce(doing, tensor, op); });
}

void ShmGroup::do_all_gather(Operand out, Operand in, Stream* stream) {
  submit_collective("all_gather", stream, out, [this, out, in](const Doing& doing) { run_all_gather(doing, out, in); });
}

void ShmGroup::do_reduce_scatter(Operand out, Operand in, ReduceOp op, bool accumulate, Stream* stream) {
  submit_collective("reduce_scatter", stream, in, [this, out, in, op, accumulate](const Doing& doing) { run_reduce_scatter(doing, out, in, op, accumulate); });
}

void ShmGroup::do_barrier(Stream* stream) {
  submit_collective("barrier", stream, {}, [this](const Doing& doing) { run_barrier(doing); });
}

void ShmGroup::run_barrier(const Doing& doing) { enter(doing, header(doing, Operation::Barrier, 0, DType::UInt8, DType::UInt8)); }

void ShmGroup::run_broadcast(const Doing& doing, const Operand& tensor, int root) {
  Header own = header(doing, Operation::Broadcast, tensor.numel, tensor.dtype, tensor.dtype, root);
  int64_t chunk = static_cast<int64_t>(kHalf) / size_of(tensor.dtype), chunks = chunks_of(tensor.numel, chunk);
  bool is_root = rank() == root;
  if (is_root) expose(own, tensor);
  for (int64_t k = 0; k < chunks; ++k) {
    int64_t begin = k * chunk, count = std::min(chunk, tensor.numel - begin);
    if (is_root && own.segment < 0) {
      size_t bytes = static_cast<size_t>(count * size_of(tensor.dtype));
      std::memcpy(mailbox(bytes), tensor.at(begin), bytes);
    }
    k == 0 ? enter(doing, own) : sync(doing);
    bool direct = header_of(root, doing).segment >= 0;
    if (direct) count = tensor.numel, chunks = 1;
    if (!is_root) cast_copy(tensor.at(begin), tensor.dtype, read(root, doing, 0, 0), tensor.dtype, count);
    progress::add_bytes(static_cast<uint64_t>(count * size_of(tensor.dtype)));
    next_mail();
    if (direct) sync(doing);
  }
}

void ShmGroup::run_scatter(const Doing& doing, const Operand& out, const Operand& in, int root) {
  bool is_root = rank() == root;
  Header own = header(doing, Operation::Scatter, out.numel, is_root ? in.dtype : out.dtype, out.dtype, root);
  if (out.whole && (!is_root || in.whole == out.whole)) return share_whole(doing, own, out);
  if (is_root) expose(own, in);
  int64_t chunks = 1;
  for (int64_t k = 0; k < chunks; ++k) {
    // Only root knows its dtype before the first round, and only root writes in it.
    auto chunk_of = [&](DType dtype) { return static_cast<int64_t>(kHalf) / size() / size_of(dtype); };
    if (is_root && own.segment < 0) {
      int64_t chunk = chunk_of(in.dtype), begin = k * chunk, count = std::min(chunk, out.numel - begin);
      size_t bytes = static_cast<size_t>(count * size_of(in.dtype)), stride = static_cast<size_t>(chunk * size_of(in.dtype));
      std::byte* box = mailbox(stride * static_cast<size_t>(size() - 1) + bytes);
      for (int r = 0; r < size(); ++r) {
        if (r != root) std::memcpy(box + static_cast<size_t>(r) * stride, in.at(r * out.numel + begin), bytes);
      }
    }
    k == 0 ? enter(doing, own) : sync(doing);
    const Header& from = header_of(root, doing);
    DType dtype = static_cast<DType>(from.in_dtype);
    bool direct = from.segment >= 0;
    int64_t chunk = direct ? std::max<int64_t>(out.numel, 1) : chunk_of(dtype), begin = k * chunk, count = std::min(chunk, out.numel - begin);
    chunks = chunks_of(out.numel, chunk);
    const void* source = is_root ? in.at(rank() * out.numel + begin) : read(root, doing, rank() * out.numel * size_of(dtype), rank() * chunk * size_of(dtype));
    cast_copy(out.at(begin), out.dtype, source, dtype, count);
    progress::add_bytes(static_cast<uint64_t>(count * size_of(dtype)));
    next_mail();
    if (direct) sync(doing);
  }
}

void ShmGroup::run_all_gather(const Doing& doing, const Operand& out, const Operand& in) {
  Header own = header(doing, Operation::AllGather, in.numel, in.dtype, out.dtype);
  if (out.whole && in.data == out.at(rank() * in.numel)) return share_whole(doing, own, out);
  expose(own, in);
  int64_t width = size_of(in.dtype), chunk = static_cast<int64_t>(kHalf) / width, chunks = chunks_of(in.numel, chunk);
  for (int64_t k = 0; k < chunks; ++k) {
    int64_t begin = k * chunk, count = std::min(chunk, in.numel - begin);
    if (own.segment < 0) {
      size_t bytes = static_cast<size_t>(count * width);
      std::memcpy(mailbox(bytes), in.at(begin), bytes);
    }
    k == 0 ? enter(doing, own) : sync(doing);
    if (k == 0 && !any_private(doing)) chunks = 1, count = in.numel;
    // Each rank starts at its own part, so that no two read the same memory at the same time.
    for (int i = 0; i < size(); ++i) {
      int peer = (rank() + i) % size();
      const void* source = peer == rank() ? in.at(begin) : read(peer, doing, begin * width, 0);
      cast_copy(out.at(peer * in.numel + begin), out.dtype, source, in.dtype, count);
    }
    progress::add_bytes(static_cast<uint64_t>(count * width * size()));
    next_mail();
  }
  if (any_direct(doing)) sync(doing);
}

// Everybody's part is where everybody reads it, once all have come this far.
void ShmGroup::share_whole(const Doing& doing, Header own, const Operand& out) {
  own.segment = kWhole;
  own.offset = out.whole;
  enter(doing, own);
  for (int peer = 0; peer < size(); ++peer) {
    const Header& theirs = header_of(peer, doing);
    if (theirs.segment != kWhole || theirs.offset != out.whole)
      fail("ERR_ARGUMENT", "[", doing.operation, "] rank ", world_rank(peer), " of group ", name(), " means other memory than this rank");
  }
  progress::add_bytes(out.bytes());
  if (TaskRecord* record = current_task()) record->work.bytes = 0;  // nothing moved
}

void ShmGroup::run_reduce_scatter(const Doing& doing, const Operand& out, const Operand& in, ReduceOp op, bool accumulate) {
  Header own = header(doing, Operation::ReduceScatter, out.numel, in.dtype, out.dtype, 0, op);
  expose(own, in);
  int64_t width = size_of(in.dtype), chunk = static_cast<int64_t>(kHalf) / size() / width, chunks = chunks_of(out.numel, chunk);
  std::vector<const void*> sources(static_cast<size_t>(size()));
  for (int64_t k = 0; k < chunks; ++k) {
    int64_t begin = k * chunk, count = std::min(chunk, out.numel - begin);
    if (own.segment < 0) {
      size_t bytes = static_cast<size_t>(count * width), stride = static_cast<size_t>(chunk * width);
      std::byte* box = mailbox(stride * static_cast<size_t>(size() - 1) + bytes);
      for (int r = 0; r < size(); ++r) {
        if (r != rank()) std::memcpy(box + static_cast<size_t>(r) * stride, in.at(r * out.numel + begin), bytes);
      }
    }
    k == 0 ? enter(doing, own) : sync(doing);
    if (k == 0 && !any_private(doing)) chunks = 1, count = out.numel;
    for (int peer = 0; peer < size(); ++peer) {
      sources[static_cast<size_t>(peer)] = peer == rank() ? in.at(rank() * out.numel + begin) : read(peer, doing, (rank() * out.numel + begin) * width, rank() * chunk * width);
    }
    reduce(out.at(begin), out.dtype, sources.data(), in.dtype, size(), count, op, accumulate);
    progress::add_bytes(static_cast<uint64_t>(count * width * size()));
    next_mail();
  }
  if (any_direct(doing)) sync(doing);
}

// Small: everyone reduces everything. Large: rank r reduces part r of each chunk where it lies, then all copy the
// parts of the others. Both compute each element over the ranks in order.
void ShmGroup::run_all_reduce(const Doing& doing, const Operand& tensor, ReduceOp op) {
  Header own = header(doing, Operation::AllReduce, tensor.numel, tensor.dtype, tensor.dtype, 0, op);
  expose(own, tensor);
  int64_t width = size_of(tensor.dtype), chunk = static_cast<int64_t>(kHalf) / width, chunks = chunks_of(tensor.numel, chunk);
  bool small = tensor.bytes() <= kSmall;
  std::vector<const void*> sources(static_cast<size_t>(size()));
  for (int64_t k = 0; k < chunks; ++k) {
    int64_t begin = k * chunk, count = std::min(chunk, tensor.numel - begin);
    std::byte* box = nullptr;
    if (own.segment < 0) {
      size_t bytes = static_cast<size_t>(count * width);
      box = mailbox(bytes);
      std::memcpy(box, tensor.at(begin), bytes);
    }
    if (k == 0) enter(doing, own);
    if (k == 0 && !any_private(doing)) return reduce_in_place(doing, tensor, op);
    if (k > 0) sync(doing);
    auto part = [&](int r) { return small ? (r == 0 ? 0 : count) : count * r / size(); };
    int first = small ? 0 : rank();  // small: all is part 0, and everybody reduces it
    int64_t from = part(first), length = part(first + 1) - from;
    for (int peer = 0; peer < size(); ++peer) {
      sources[static_cast<size_t>(peer)] = peer == rank() ? tensor.at(begin + from) : read(peer, doing, (begin + from) * width, from * width);
    }
    reduce(tensor.at(begin + from), tensor.dtype, sources.data(), tensor.dtype, size(), length, op, false);
    if (!small) {
      // Nobody else reads part `rank` of this rank's memory before this round.
      if (box) std::memcpy(box + from * width, tensor.at(begin + from), static_cast<size_t>(length * width));
      sync(doing);
      for (int i = 1; i < size(); ++i) {
        int peer = (rank() + i) % size();
        int64_t theirs = part(peer), theirs_length = part(peer + 1) - theirs;
        cast_copy(tensor.at(begin + theirs), tensor.dtype, read(peer, doing, (begin + theirs) * width, theirs * width), tensor.dtype, theirs_length);
      }
    }
    progress::add_bytes(static_cast<uint64_t>(count * width));
    next_mail();
  }
  if (any_direct(doing)) sync(doing);
}

// All memory is shared: rank r reduces part r of a piece, and copies the other parts from their ranks after one round.
void ShmGroup::reduce_in_place(const Doing& doing, const Operand& tensor, ReduceOp op) {
  int64_t width = size_of(tensor.dtype), piece = static_cast<int64_t>(kPiece) / width;
  std::vector<const void*> sources(static_cast<size_t>(size()));
  for (int64_t begin = 0; begin < tensor.numel; begin += piece) {
    int64_t count = std::min(piece, tensor.numel - begin);
    auto part = [&](int r) { return begin + count * r / size(); };
    auto peer_part = [&](int peer, int r) { return peer == rank() ? tensor.at(part(r)) : read(peer, doing, part(r) * width, 0); };
    auto length = [&](int r) { return part(r + 1) - part(r); };
    for (int peer = 0; peer < size(); ++peer) sources[static_cast<size_t>(peer)] = peer_part(peer, rank());
    reduce(tensor.at(part(rank())), tensor.dtype, sources.data(), tensor.dtype, size(), length(rank()), op, false);
    sync(doing);
    for (int i = 1; i < size(); ++i) {
      int peer = (rank() + i) % size();
      cast_copy(tensor.at(part(peer)), tensor.dtype, peer_part(peer, peer), tensor.dtype, length(peer));
    }
    progress::add_bytes(static_cast<uint64_t>(count * width));
  }
  sync(doing);
}

}  // namespace rz::comm
