#include "comm/host_id.h"

#include <unistd.h>

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
  return std::to_string(pid) + "\n" + hostname + "\n" + id;
}

HostInfo HostInfo::decode(const std::string& text) {
  std::istringstream lines(text);
  std::string pid;
  HostInfo host;
  if (!std::getline(lines, pid) || !std::getline(lines, host.hostname) || !std::getline(lines, host.id)) {
    fail("ERR_STORE_PROTOCOL", "a rank described its host as \"", text, "\"");
  }
  host.pid = static_cast<uint32_t>(std::stoul(pid));
  return host;
}

void expect_one_host(const std::vector<HostInfo>& ranks) {
  for (size_t r = 1; r < ranks.size(); ++r) {
    if (ranks[r].id != ranks[0].id) {
      fail("ERR_BACKEND", "the shm backend needs all ranks on one host, but rank 0 runs on ", ranks[0].hostname, " and rank ", r, " on ", ranks[r].hostname,
           " (another host, boot or network namespace). CPU ranks of several hosts are not supported");
    }
  }
}

}  // namespace rz::comm
