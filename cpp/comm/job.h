// A rank's membership in a job: the store, the shared segments, and the groups made from them. Joining blocks until
// every rank is there; leaving in good order waits until the peers have read what this rank sent.
#pragma once
#include <map>
#include <memory>
#include <vector>

#include "comm/host_id.h"
#include "comm/process_group.h"
#include "comm/segment_exchange.h"
#include "comm/shared_storage.h"
#include "comm/store.h"
#include "comm/store_server.h"
#include "comm/whole_storage.h"

namespace rz::comm {

struct JobOptions {
  int rank = 0, size = 1;
  StoreAddress store;
  bool serves = true;    // this process serves the store: on rank 0, and wherever else the ranks may look for it
  std::string address;   // at which other hosts reach this rank; empty: as its connection to the store has it
  int level = 0, features = 0;  // of this rank's processor: see HostInfo
  bool loopback = true;  // the store listens for this host only
  double timeout_seconds = 1800;
};

class HostsGroup;
class Link;
class ShmGroup;

class Job : public std::enable_shared_from_this<Job> {
 public:
  // Errors: those of Store, and ERR_BACKEND when ranks are on several hosts and nothing can connect them.
  static std::shared_ptr<Job> join(const JobOptions& options);
  ~Job();

  int rank() const { return options_.rank; }
  JobState& state() { return *state_; }
  std::shared_ptr<JobState> shared_state() { return state_; }
  Store& store() { return *store_; }
  SegmentExchange& exchange() { return *exchange_; }
  std::shared_ptr<SharedPool> pool(Runtime* runtime);
  std::shared_ptr<WholePool> whole_pool(Runtime* runtime);

  // Connections to other hosts; null when all ranks are on one.
  Link* link() { return link_.get(); }
  // Of all ranks of the world.
  const HostLayout& layout() const { return layout_; }
  const std::vector<HostInfo>& hosts() const { return hosts_; }

  std::shared_ptr<ProcessGroup> world(Runtime* runtime);
  // A group of world ranks that this rank is among. Groups of the same ranks are told apart by the order of creation.
  std::shared_ptr<ProcessGroup> group(const std::string& title, std::vector<int> ranks, Runtime* runtime);

  // A group of some ranks of another, this one among them; null where it is not.
  std::shared_ptr<ProcessGroup> split(const ProcessGroup& whole, const std::vector<int>& members, Runtime* runtime);

  // In good order: peers that still wait for this rank are told so. Rank 0 stays until all have left.
  void leave();
  // This rank goes because it failed: the others stop at once.
  void fail(const std::string& reason);
  bool left() const { return left_; }

 private:
  explicit Job(const JobOptions& options);
  void open_store();
  void connect();
  std::string reachable_address() const;
  void say_goodbye();
  void depart(const std::string& why);

  JobOptions options_;
  std::shared_ptr<JobState> state_;
  std::unique_ptr<StoreServer> server_;
  std::unique_ptr<Store> store_;
  std::shared_ptr<SegmentExchange> exchange_;
  std::shared_ptr<SharedPool> pool_;
  std::shared_ptr<WholePool> whole_pool_;
  std::map<std::string, int> group_counts_;
  std::vector<std::weak_ptr<ShmGroup>> groups_;
  std::vector<std::weak_ptr<HostsGroup>> host_groups_;
  std::vector<HostInfo> hosts_;  // by rank
  HostLayout layout_;
  std::unique_ptr<Link> link_;
  bool left_ = false;
};

}  // namespace rz::comm
