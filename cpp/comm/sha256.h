// SHA-256 and HMAC-SHA256 (FIPS 180-4, RFC 2104): what the store's admission needs, and no more.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace rz::comm {

std::string sha256(std::string_view message);                            // 32 raw bytes
std::string hmac_sha256(std::string_view key, std::string_view message);  // 32 raw bytes
bool equal_in_constant_time(std::string_view a, std::string_view b);
std::string random_bytes(size_t count);  // from the kernel
std::string to_hex(std::string_view bytes);

}  // namespace rz::comm
