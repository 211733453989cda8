#include "comm/job.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <sstream>

#include "comm/hosts/engine_library.h"
#include "comm/hosts/hosts_group.h"
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
  raise_descriptor_limit();
  job->open_store();
  job->connect();
  // Of several that serve, the ranks know one.
  if (job->server_ && !job->server_->is_used()) job->server_.reset();
  return job;
}

void Job::open_store() {
  const StoreAddress& store = options_.store;
  try {
    if (options_.serves)
      server_ = std::make_unique<StoreServer>(store.port, options_.loopback, store.secret(), options_.rank, options_.size, store.version, store.silence);
    store_ = std::make_unique<Store>(store, state_);
  } catch (const Error& error) {
    if (store.host_name.empty()) throw;
    throw Error(error.code(), "rank " + std::to_string(options_.rank) + " on " + store.host_name + " cannot join the job: " + error.what());
  }
}

void Job::connect() {
  Doing joining{"initProcessGroup"};
  if (options_.rank == 0) store_->set("job", to_hex(random_bytes(12)));
  std::string name = store_->get("job", joining, 0);
  const std::string secret = options_.store.secret();
  // Served before the rank is announced: whoever sees the announcement can fetch.
  exchange_ = std::make_shared<SegmentExchange>(name, hmac_sha256(secret, "segments" + name), state_);
  HostInfo own = this_host();
  own.address = options_.address.empty() ? store_->own_address() : options_.address;
  own.store_address = store_->server_address();
  own.level = options_.level;
  own.features = options_.features;
  if (!options_.loopback) own.engine = engine_problem();
  store_->set("host/" + std::to_string(options_.rank), own.encode());
  std::vector<std::string> ids;
  for (int r = 0; r < options_.size; ++r) {
    std::string key = "host/" + std::to_string(r), missing = "rankzero: rank 0 waits for rank " + std::to_string(r) + " to join\n";
    hosts_.push_back(HostInfo::decode(store_->get(key, joining, r, options_.rank == 0 ? missing : "")));
    ids.push_back(hosts_.back().id);
  }
  layout_ = HostLayout(ids);
  const bool several = layout_.hosts() > 1;
  for (int r = 0; r < options_.size; ++r) {
    const HostInfo& host = hosts_[static_cast<size_t>(r)];
    state_->introduce(r, host.pid, several ? host.hostname : "");
  }
  if (!several) return;
  for (int r = 0; r < options_.size; ++r) {
    const HostInfo& host = hosts_[static_cast<size_t>(r)];
    if (!host.engine.empty())
      rz::fail("ERR_BACKEND", "the ranks of this job are on ", layout_.hosts(), " hosts, but rank ", r, " on ", host.hostname, " cannot be connected to the others: ", host.engine);
  }
  link_ = std::make_unique<Link>(open_engine(reachable_address(), options_.rank, options_.size), hmac_sha256(secret, "link" + name), *store_, state_);
}

// A rank on the host of the store may have reached it by loopback: then its address is the one that other hosts used.
std::string Job::reachable_address() const {
  const HostInfo& own = hosts_[static_cast<size_t>(options_.rank)];
  if (!is_loopback(own.address)) return own.address;
  for (const HostInfo& other : hosts_)
    if (other.id != own.id && !is_loopback(other.store_address)) return other.store_address;
  rz::fail("ERR_BACKEND", "rank ", options_.rank, " on ", own.hostname, " knows no address at which other hosts reach it: MASTER_ADDR is a loopback address. ",
           "Set MASTER_ADDR to an address of the host of rank 0, or RANKZERO_ADDRESS on each host");
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
  std::vector<std::string> ids;
  for (int r : ranks) ids.push_back(hosts_[static_cast<size_t>(r)].id);
  HostLayout layout(ids);
  if (layout.hosts() > 1) {
    auto group = HostsGroup::create(shared_from_this(), key, title, std::move(ranks), std::move(layout), pool);
    std::erase_if(host_groups_, [](auto& g) { return g.expired(); });
    host_groups_.push_back(group);
    return group;
  }
  auto group = ShmGroup::create(shared_from_this(), key, title, std::move(ranks), pool);
  std::erase_if(groups_, [](auto& g) { return g.expired(); });
  groups_.push_back(group);
  return group;
}

std::shared_ptr<ProcessGroup> Job::split(const ProcessGroup& whole, const std::vector<int>& members, Runtime* runtime) {
  std::vector<int> world;
  std::ostringstream title;
  for (int member : members) {
    world.push_back(whole.ranks()[static_cast<size_t>(member)]);
    title << (world.size() == 1 ? "[" : ",") << world.back();
  }
  title << "]";
  if (std::find(members.begin(), members.end(), whole.rank()) == members.end()) return nullptr;
  return group(title.str(), std::move(world), runtime);
}

void Job::leave() {
  if (left_ || !store_) return;
  auto of_all = [&](auto act) {
    for (auto& weak : groups_)
      if (auto group = weak.lock()) act(*group);
    for (auto& weak : host_groups_)
      if (auto group = weak.lock()) act(*group);
  };
  of_all([](auto& group) { group.close_devices(); });
  // First the goodbye: a peer that waits for a call of this rank must not wait while this rank waits for it to read.
  say_goodbye();
  of_all([](auto& group) { group.quiesce(); });
  if (!state_->aborted()) link_.reset();  // softly: what was sent arrives
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

void Job::say_goodbye() {
  if (link_) link_->farewell();
  store_->leave();
}

void Job::depart(const std::string& why) {
  if (std::exchange(left_, true)) return;
  if (store_) {
    say_goodbye();  // twice is harmless
    if (server_ && !state_->aborted()) server_->linger();
    state_->abort("ERR_GROUP_CLOSED", why);
    store_.reset();
  }
  server_.reset();
}

}  // namespace rz::comm
