// What tells whether two ranks can share memory.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace rz::comm {

struct HostInfo {
  std::string id;        // boot, host name and network namespace: ranks share memory where these are equal
  std::string hostname;  // for messages
  uint32_t pid = 0;

  std::string encode() const;
  static HostInfo decode(const std::string& text);
};

HostInfo this_host();

// Errors, the same on every rank: ERR_BACKEND where they are not all on one.
void expect_one_host(const std::vector<HostInfo>& ranks);

}  // namespace rz::comm
