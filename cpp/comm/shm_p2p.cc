// Messages between two ranks of a ShmGroup. A channel holds two parcels: a message from private memory is cut into
// parcels that are copied twice; one from a shared storage is a single parcel that the receiver reads in place.
#include <algorithm>
#include <cstring>

#include "comm/futex.h"
#include "comm/shm_group.h"
#include "comm/shm_limits.h"
#include "core/progress.h"
#include "core/task_log.h"

namespace rz::comm {

void ShmGroup::do_send(Operand tensor, int to, Stream* stream) {
  submit(*sends_[static_cast<size_t>(to)], "send", stream, [this, tensor, to](const Doing& doing) {
    describe(tensor.work());
    run_send(doing, tensor, to);
  });
}

void ShmGroup::do_recv(Operand tensor, int from, Stream* stream) {
  submit(*receives_[static_cast<size_t>(from)], "recv", stream, [this, tensor, from](const Doing& doing) {
    describe(tensor.work());
    run_recv(doing, tensor, from);
  });
}

void ShmGroup::wait_channel(const Doing& doing, int peer, Channel& channel, std::atomic<uint32_t>& word, const std::function<bool()>& ready) {
  PeerWait waiting;
  for (int i = 0; i < spin_; ++i) {
    if (ready()) return;
    spin_pause();
  }
  wait_for(state(), doing, world_rank(peer), ready, [&] {
    uint32_t seen = word.load(std::memory_order_acquire);
    if (!ready()) sleep_on_word(word, channel.sleepers, seen);
  });
}

void ShmGroup::run_send(const Doing& doing, const Operand& tensor, int to) {
  Channel& channel = control_.channel(rank(), to);
  uint32_t sent = channel.sent.load(std::memory_order_relaxed);
  bool direct = tensor.bytes() > kSmall && tensor.segment >= 0;
  SegmentTable::Owned& box = parcels_[static_cast<size_t>(to)];
  if (!direct && !box.data) box = job_->exchange().own().create(2 * kParcel);
  int64_t total = static_cast<int64_t>(tensor.bytes()), done = 0;
  do {
    wait_channel(doing, to, channel, channel.received, [&] { return sent - channel.received.load(std::memory_order_acquire) < 2; });
    Parcel& parcel = channel.parcels[sent & 1];
    parcel = {doing.sequence, tensor.numel, 0, box.id, static_cast<uint8_t>(tensor.dtype), direct};
    int64_t count = direct ? total : std::min<int64_t>(total - done, kParcel);
    if (direct) {
      parcel.segment = tensor.segment;
      parcel.offset = tensor.offset;
    } else {
      parcel.offset = static_cast<int64_t>((sent & 1) * kParcel);
      populate(box.data + parcel.offset, static_cast<size_t>(count));
      std::memcpy(box.data + parcel.offset, tensor.data + done, static_cast<size_t>(count));
    }
    publish_word(channel.sent, channel.sleepers, ++sent);
    done += count;
    progress::add_bytes(static_cast<uint64_t>(count));
  } while (done < total);
  if (direct) wait_channel(doing, to, channel, channel.received, [&] { return channel.received.load(std::memory_order_acquire) == sent; });
}

void ShmGroup::run_recv(const Doing& doing, const Operand& tensor, int from) {
  Channel& channel = control_.channel(from, rank());
  uint32_t received = channel.received.load(std::memory_order_relaxed);
  int64_t total = static_cast<int64_t>(tensor.bytes()), done = 0;
  do {
    wait_channel(doing, from, channel, channel.sent, [&] { return channel.sent.load(std::memory_order_acquire) != received; });
    const Parcel& parcel = channel.parcels[received & 1];
    DType dtype = static_cast<DType>(parcel.dtype);
    if (parcel.numel != tensor.numel || dtype != tensor.dtype || parcel.sequence != doing.sequence) {
      state().raise("ERR_COLLECTIVE_MISMATCH", "message #" + std::to_string(doing.sequence) + " of group " + name() + " is send(" + std::to_string(parcel.numel) + " × " + name_of(dtype) +
                                                   ") on rank " + std::to_string(world_rank(from)) + " but recv(" + std::to_string(tensor.numel) + " × " + name_of(tensor.dtype) +
                                                   ") on rank " + std::to_string(world_rank(rank())));
    }
    int64_t count = parcel.direct ? total : std::min<int64_t>(total - done, kParcel);
    const std::byte* source = job_->exchange().map(world_rank(from), parcel.segment, doing) + parcel.offset;
    std::memcpy(tensor.data + done, source, static_cast<size_t>(count));
    publish_word(channel.received, channel.sleepers, ++received);
    done += count;
    progress::add_bytes(static_cast<uint64_t>(count));
  } while (done < total);
}

}  // namespace rz::comm
