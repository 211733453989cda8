#include "comm/job.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>

#include "comm/host_id.h"
#include "comm/local_group.h"
#include "comm/sha256.h"
#include "comm/shm_group.h"

namespace rz::comm {
namespace {

// A shared storage holds a descriptor for its life.
void raise_descriptor_limit() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max == RLIM_INFINITY ? 65536 : limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace

Job::Job(const JobOptions& options) : options_(options), state_(std::make_shared<JobState>(options.rank, options.size, options.timeout_seconds)) {}

std::shared_ptr<Job> Job::join(const JobOptions& options) {
  std::shared_ptr<Job> job(new Job(options));
  Doing joining{"initProcessGroup"};
  raise_descriptor_limit();
  if (options.rank == 0) {
    job->server_ = std::make_unique<StoreServer>(options.store.port, options.loopback, options.store.secret(), options.size);
  }
  job->store_ = std::make_unique<Store>(options.store, job->state_);
  if (options.rank == 0) job->store_->set("job", to_hex(random_bytes(12)));
  std::string name = job->store_->get("job", joining, 0);
  // Served before the rank is announced: whoever sees the announcement can fetch.
  job->exchange_ = std::make_shared<SegmentExchange>(name, hmac_sha256(options.store.secret(), "segments" + name), job->state_);
  job->store_->set("host/" + std::to_string(options.rank), this_host().encode());
  std::vector<HostInfo> hosts;
  for (int r = 0; r < options.size; ++r) {
    std::string key = "host/" + std::to_string(r), missing = "rankzero: rank 0 waits for rank " + std::to_string(r) + " to join\n";
    hosts.push_back(HostInfo::decode(job->store_->get(key, joining, r, options.rank == 0 ? missing : "")));
  }
  for (int r = 0; r < options.size; ++r) job->state_->introduce(r, hosts[static_cast<size_t>(r)].pid);
  expect_one_host(hosts);
  return job;
}

Job::~Job() { depart("this process has left the job"); }

std::shared_ptr<SharedPool> Job::pool(Runtime* runtime) {
  if (!pool_) pool_ = std::make_shared<SharedPool>(runtime, exchange_);
  return pool_;
}

std::shared_ptr<WholePool> Job::whole_pool(Runtime* runtime) {
  if (!whole_pool_) whole_pool_ = std::make_shared<WholePool>(runtime, exchange_);
  return whole_pool_;
}

std::shared_ptr<ProcessGroup> Job::world(Runtime* runtime) {
  std::vector<int> ranks(static_cast<size_t>(options_.size));
  for (int r = 0; r < options_.size; ++r) ranks[static_cast<size_t>(r)] = r;
  return group("world", std::move(ranks), runtime);
}

std::shared_ptr<ProcessGroup> Job::group(const std::string& title, std::vector<int> ranks, Runtime* runtime) {
  if (left_) rz::fail("ERR_GROUP_CLOSED", "the process group was used after destroyProcessGroup()");
  auto pool = this->pool(runtime);
  if (ranks.size() == 1) {
    return std::make_shared<LocalGroup>(title, ranks[0], [pool](size_t bytes, Stream* home, MemoryKind kind, bool populate) {
      return pool->allocate(bytes, home, kind, populate);
    });
  }
  std::string key = "group/" + title + "#" + std::to_string(++group_counts_[title]);
  auto group = ShmGroup::create(shared_from_this(), key, title, std::move(ranks), pool);
  std::erase_if(groups_, [](auto& g) { return g.expired(); });
  groups_.push_back(group);
  return group;
}

void Job::leave() {
  if (left_ || !store_) return;
  for (auto& weak : groups_) {
    if (auto group = weak.lock()) group->close_devices();
  }
  // First the goodbye: a peer that waits for a call of this rank must not wait while this rank waits for it to read.
  store_->leave();
  for (auto& weak : groups_) {
    if (auto group = weak.lock()) group->quiesce();
  }
  depart("this process has left the job");
}

void Job::fail(const std::string& reason) {
  if (left_) return;
  state_->announce("ERR_PEER", "rank " + std::to_string(options_.rank) + " (pid " + std::to_string(getpid()) + ") failed: " + reason);
  bool server = server_ != nullptr;
  state_->abort("ERR_PEER", "this rank failed: " + reason);
  depart("");
  if (server) server_.reset();
}

void Job::depart(const std::string& why) {
  if (std::exchange(left_, true)) return;
  if (store_) {
    store_->leave();  // twice is harmless
    if (server_ && !state_->aborted()) server_->linger();
    state_->abort("ERR_GROUP_CLOSED", why);
    store_.reset();
  }
  server_.reset();
}

}  // namespace rz::comm
