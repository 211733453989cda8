#include "comm/host_id.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "core/error.h"

namespace rz::comm {

HostInfo this_host() {
  HostInfo host;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> host.id;
  char text[256] = {};
  gethostname(text, sizeof text - 1);
  host.hostname = text;
  char link[64] = {};
  if (readlink("/proc/self/ns/net", link, sizeof link - 1) < 0) link[0] = 0;  // abstract sockets live in it
  host.id += "/" + host.hostname + "/" + link;
  return host;
}

std::string HostInfo::encode() const { return std::string(own_gpu ? "1" : "0") + (nccl ? "1" : "0") + hostname + "\n" + id; }

HostInfo HostInfo::decode(const std::string& text) {
  size_t end = text.find('\n');
  if (text.size() < 2 || end == std::string::npos) fail("ERR_STORE_PROTOCOL", "a rank described its host as \"", text, "\"");
  return {text.substr(end + 1), text.substr(2, end - 2), text[0] == '1', text[1] == '1'};
}

std::string choose_backend(const std::vector<HostInfo>& ranks) {
  if (std::all_of(ranks.begin(), ranks.end(), [](const HostInfo& h) { return h.own_gpu && h.nccl; })) return "nccl";
  for (size_t r = 1; r < ranks.size(); ++r) {
    if (ranks[r].id != ranks[0].id) {
      fail("ERR_BACKEND", "the shm backend needs all ranks on one host, but rank 0 runs on ", ranks[0].hostname, " and rank ", r, " on ", ranks[r].hostname,
           " (another host, boot or network namespace). CPU ranks of several hosts are not supported");
    }
  }
  return "shm";
}

}  // namespace rz::comm
