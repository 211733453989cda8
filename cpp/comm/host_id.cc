#include "comm/host_id.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "core/error.h"

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
  return std::string(own_gpu ? "1" : "0") + (nccl ? "1" : "0") + "\n" + std::to_string(pid) + "\n" + hostname + "\n" + id;
}

HostInfo HostInfo::decode(const std::string& text) {
  std::istringstream lines(text);
  std::string flags, pid;
  HostInfo host;
  if (!std::getline(lines, flags) || flags.size() != 2 || !std::getline(lines, pid) || !std::getline(lines, host.hostname) || !std::getline(lines, host.id)) {
    fail("ERR_STORE_PROTOCOL", "a rank described its host as \"", text, "\"");
  }
  host.own_gpu = flags[0] == '1';
  host.nccl = flags[1] == '1';
  host.pid = static_cast<uint32_t>(std::stoul(pid));
  return host;
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
