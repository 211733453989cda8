#include "comm/host_id.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <map>

#include "comm/wire.h"

namespace rz::comm {

HostInfo this_host() {
  HostInfo host;
  host.pid = static_cast<uint32_t>(getpid());
  std::ifstream("/proc/sys/kernel/random/boot_id") >> host.id;
  char text[256] = {};
  gethostname(text, sizeof text - 1);
  host.hostname = text;
  char link[64] = {};
  if (readlink("/proc/self/ns/net", link, sizeof link - 1) < 0) link[0] = 0;  // abstract sockets live in it
  host.id += "/" + host.hostname + "/" + link;
  return host;
}

std::string HostInfo::encode() const {
  Writer text(Message::Set);
  text.u32(pid).text(hostname).text(id).text(address).text(store_address).text(engine).u32(static_cast<uint32_t>(level)).u32(static_cast<uint32_t>(features));
  return text.frame();
}

HostInfo HostInfo::decode(const std::string& text) {
  Reader reader(text);
  HostInfo host;
  reader.u32();  // length
  reader.type();
  host.pid = reader.u32();
  for (std::string* field : {&host.hostname, &host.id, &host.address, &host.store_address, &host.engine}) *field = reader.text();
  host.level = static_cast<int>(reader.u32());
  host.features = static_cast<int>(reader.u32());
  return host;
}

HostLayout::HostLayout(const std::vector<std::string>& ids) {
  std::map<std::string, int> known;
  for (size_t rank = 0; rank < ids.size(); ++rank) {
    auto [found, is_new] = known.try_emplace(ids[rank], hosts());
    if (is_new) ranks_.emplace_back();
    auto& ranks = ranks_[static_cast<size_t>(found->second)];
    host_of_.push_back(found->second);
    index_of_.push_back(static_cast<int>(ranks.size()));
    ranks.push_back(static_cast<int>(rank));
  }
}

int HostLayout::fewest() const {
  size_t fewest = ranks_.empty() ? 0 : ranks_[0].size();
  for (const auto& ranks : ranks_) fewest = std::min(fewest, ranks.size());
  return static_cast<int>(fewest);
}

std::vector<int> HostLayout::column(int rank, int index) const {
  std::vector<int> ranks;
  for (int host = 0; host < hosts(); ++host)
    if (host != host_of(rank)) ranks.push_back(partner(host, index));
  return ranks;
}

std::vector<int> HostLayout::givers(int rank) const {
  std::vector<int> found;
  for (int host = 0; host < hosts(); ++host) {
    if (host == host_of(rank)) continue;
    for (int r : ranks_on(host))
      if (partner(host_of(rank), index_of(r)) == rank) found.push_back(r);
  }
  return found;
}

std::vector<int> HostLayout::partners(int rank) const {
  std::vector<int> all = takers(rank), more = givers(rank);
  all.insert(all.end(), more.begin(), more.end());
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());
  return all;
}

}  // namespace rz::comm
