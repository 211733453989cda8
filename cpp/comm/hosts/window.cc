#include "comm/hosts/window.h"

namespace rz::comm {

Window::Window(ShmGroup* group, const char* operation, const Header& call, const Operand& tensor) : group_(group), doing_{operation} {
  if (!group_) return;
  doing_ = {operation, ++group_->windows_, group_->name().c_str()};
  Header own = call;
  own.sequence = doing_.sequence;
  own.segment = tensor.data ? tensor.segment : kNothing;
  own.offset = tensor.offset;
  group_->enter(doing_, own);
  for (int peer = 0; peer < group_->size(); ++peer) direct_ = direct_ && group_->header_of(peer, doing_).segment != -1;
}

void Window::meet() {
  if (group_) group_->sync(doing_);
}

const std::byte* Window::at(int peer, int64_t at) {
  const Header& theirs = group_->header_of(peer, doing_);
  if (!direct_) return group_->mailbox_of(peer, doing_) + at;
  return group_->job_->exchange().map(group_->world_rank(peer), theirs.segment, doing_) + theirs.offset + at;
}

void Window::close() {
  if (!group_) return;
  group_->sync(doing_);
  group_->control_.slot(group_->rank()).finished.store(static_cast<uint32_t>(doing_.sequence), std::memory_order_release);
}

}  // namespace rz::comm
