// What a rank says of itself when it joins, and on which hosts the ranks of a job are. Ranks of one host share kernel, host name
// and network namespace, so that they can pass each other descriptors of memory.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace rz::comm {

struct HostInfo {
  uint32_t pid = 0;
  std::string hostname;
  std::string id;             // equal for ranks of one host alone
  std::string address;        // numeric, at which other hosts reach this rank
  std::string store_address;  // at which this rank reached the store
  std::string engine;         // why the engine between hosts cannot be used here; empty where it can
  int level = 0;              // of its instruction set, of which all ranks can run the least
  int features = 0;           // of its processor, by which GEMMs choose kernels beside the level

  std::string encode() const;
  static HostInfo decode(const std::string& text);
};

HostInfo this_host();

// The hosts of some ranks, in the order of their first ranks.
class HostLayout {
 public:
  HostLayout() = default;
  // One id for each rank.
  explicit HostLayout(const std::vector<std::string>& ids);

  int size() const { return static_cast<int>(host_of_.size()); }
  int hosts() const { return static_cast<int>(ranks_.size()); }
  int host_of(int rank) const { return host_of_[static_cast<size_t>(rank)]; }
  // Position of a rank among those of its host.
  int index_of(int rank) const { return index_of_[static_cast<size_t>(rank)]; }
  const std::vector<int>& ranks_on(int host) const { return ranks_[static_cast<size_t>(host)]; }
  int size_of(int host) const { return static_cast<int>(ranks_on(host).size()); }
  // The rank of `host` that exchanges with ranks of index `index` on other hosts.
  int partner(int host, int index) const { return ranks_on(host)[static_cast<size_t>(index % size_of(host))]; }
  int fewest() const;  // ranks on a host

  // The ranks of index `index`, one of each host but that of `rank`.
  std::vector<int> column(int rank, int index) const;
  // Ranks that take what `rank` has for their host, one of each other host; ranks whose parts come to it; and both.
  std::vector<int> takers(int rank) const { return column(rank, index_of(rank)); }
  std::vector<int> givers(int rank) const;
  std::vector<int> partners(int rank) const;

 private:
  std::vector<int> host_of_, index_of_;
  std::vector<std::vector<int>> ranks_;
};

}  // namespace rz::comm
