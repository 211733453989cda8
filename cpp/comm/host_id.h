// What tells whether two ranks can share memory, and which backend a job gets.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace rz::comm {

struct HostInfo {
  std::string id;        // boot, host name and network namespace: ranks share memory where these are equal
  std::string hostname;  // for messages
  bool own_gpu = false;  // a GPU that no other rank of the job uses
  bool nccl = false;     // a usable library was found
  uint32_t pid = 0;

  std::string encode() const;
  static HostInfo decode(const std::string& text);
};

HostInfo this_host();

// The same answer on every rank: "nccl" only if every rank can, else "shm". Errors: ERR_BACKEND for shm across hosts.
std::string choose_backend(const std::vector<HostInfo>& ranks);

}  // namespace rz::comm
