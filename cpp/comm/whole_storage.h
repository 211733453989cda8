// Memory that all ranks of a group map whole: the flat buffer of an FSDP unit, of which each rank owns a part. Gathering it
// takes no copy, only the agreement that everybody has written (a barrier). Writers and readers order themselves.
#pragma once
#include <list>
#include <memory>
#include <mutex>

#include "comm/segment_exchange.h"
#include "core/runtime.h"

namespace rz::comm {

// Unmaps when the streams that used the memory are past it: enqueued collectives keep addresses, not storages.
class WholePool : public std::enable_shared_from_this<WholePool> {
 public:
  WholePool(Runtime* runtime, std::shared_ptr<SegmentExchange> exchange) : runtime_(runtime), exchange_(std::move(exchange)) {}
  ~WholePool();

  // `counted`: this rank's bytes in the memory statistics.
  std::shared_ptr<Storage> adopt(WholeSegment segment, size_t bytes, size_t counted, Stream* home, MemoryKind kind);
  SegmentExchange& exchange() { return *exchange_; }
  // Really frees what no stream uses any more.
  void trim();

 private:
  friend class WholeStorage;
  struct Retired {
    WholeSegment segment;
    std::vector<Event> pending;
  };
  void retire(Retired retired);
  void destroy(WholeSegment& segment);

  Runtime* runtime_;
  std::shared_ptr<SegmentExchange> exchange_;
  std::mutex mutex_;
  std::list<Retired> retired_;
};

}  // namespace rz::comm
