// How the ranks of one host take part together in a collective over several hosts: between the construction of a window and its
// end, all of them read each other's memory. Shared memory is read where it is; private memory of any of them makes all of them
// show the collective piece by piece, through their mailboxes.
#pragma once
#include "comm/shm_group.h"

namespace rz::comm {

class Window {
 public:
  // On the stream's thread; every rank of `group` makes the same windows. `call` is compared. `tensor` is what this rank shows;
  // one without memory shows nothing. Null group: a host with one rank, which has nobody to show anything.
  Window(ShmGroup* group, const char* operation, const Header& call, const Operand& tensor);
  // Waits until nobody reads any more.
  void close();

  int size() const { return group_ ? group_->size() : 1; }
  int rank() const { return group_ ? group_->rank() : 0; }
  // Whether all memory is read where it is.
  bool is_direct() const { return direct_; }
  // Everybody's next piece, or all of the memory, is there: a round.
  void meet();
  // What `peer`, a rank of the host, shows, from byte `at`: of its memory if direct, else of its mailbox. Own memory is not here.
  const std::byte* at(int peer, int64_t at);
  const Header& header_of(int peer) const { return group_->header_of(peer, doing_); }
  // Where this rank writes its next piece; at most kHalf bytes.
  std::byte* stage(size_t bytes) { return group_->mailbox(bytes); }
  void next_piece() {
    if (group_ && !direct_) group_->next_mail();
  }

 private:
  ShmGroup* group_;
  Doing doing_;
  static constexpr int32_t kNothing = -3;  // a segment: this rank shows nothing
  bool direct_ = true;
};

}  // namespace rz::comm
