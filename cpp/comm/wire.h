// Messages of the store: a frame is a 4-byte length and a body of little-endian integers and counted strings.
// A malformed frame throws ERR_STORE_PROTOCOL; the connection that sent it is then closed.
#pragma once
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "core/error.h"

namespace rz::comm {

enum class Message : uint8_t {
  // server → client, before admission
  Challenge = 1,  // magic, server nonce
  Welcome = 2,    // server proof, rank that serves, its pid
  Refused = 3,    // code, reason
  // client → server
  Hello = 10,      // rank, world size, pid, client nonce, proof, version of the package, host
  Set = 11,        // key, value
  Get = 12,        // request, key, timeout ms
  Heartbeat = 14,  // phase, operation, sequence, bytes, ticks
  Goodbye = 15,    // no more calls will come from this rank; it may still serve its memory
  Raise = 16,  // code, text: this rank aborts the job
  // server → client
  Reply = 20,     // request, found, value
  Status = 21,    // ms since the last progress of any rank, then one status per rank
  Abort = 22,     // rank, code, text
  Departed = 23,  // rank: left in good order
};

constexpr std::string_view kStoreMagic = "rankzero-store-2";
constexpr size_t kMaxFrame = size_t{1} << 30;

class Writer {
 public:
  explicit Writer(Message type) : bytes_(4, 0) { u8(static_cast<uint8_t>(type)); }
  Writer& u8(uint8_t value) { return raw(&value, 1); }
  Writer& u32(uint32_t value) { return raw(&value, 4); }
  Writer& u64(uint64_t value) { return raw(&value, 8); }
  Writer& text(std::string_view value) { return u32(static_cast<uint32_t>(value.size())).raw(value.data(), value.size()); }
  const std::string& frame() {
    uint32_t length = static_cast<uint32_t>(bytes_.size() - 4);
    std::memcpy(bytes_.data(), &length, 4);
    return bytes_;
  }

 private:
  Writer& raw(const void* data, size_t size) {
    bytes_.append(static_cast<const char*>(data), size);
    return *this;
  }
  std::string bytes_;
};

class Reader {
 public:
  explicit Reader(std::string_view body) : rest_(body) {}
  Message type() { return static_cast<Message>(u8()); }
  uint8_t u8() { return static_cast<uint8_t>(take(1)[0]); }
  uint32_t u32() { return number<uint32_t>(); }
  uint64_t u64() { return number<uint64_t>(); }
  std::string text() { return std::string(take(u32())); }

 private:
  template <class T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
    return value;
  }
  std::string_view take(size_t count) {
    if (count > rest_.size()) fail("ERR_STORE_PROTOCOL", "a message of the store is cut short");
    std::string_view part = rest_.substr(0, count);
    rest_.remove_prefix(count);
    return part;
  }
  std::string_view rest_;
};

// Removes one frame from the front of `buffer`; false if it is not complete yet.
inline bool take_frame(std::string& buffer, std::string& body, size_t limit = kMaxFrame) {
  if (buffer.size() < 4) return false;
  uint32_t length;
  std::memcpy(&length, buffer.data(), 4);
  if (length == 0 || length > limit) fail("ERR_STORE_PROTOCOL", "a message of ", length, " bytes is not one of the store");
  if (buffer.size() < 4 + size_t{length}) return false;
  body.assign(buffer, 4, length);
  buffer.erase(0, 4 + size_t{length});
  return true;
}

// What a client proves, and what the server proves back: the secret itself never travels.
inline std::string proof_text(std::string_view who, std::string_view server_nonce, std::string_view client_nonce, uint32_t rank, uint32_t size) {
  std::string text(who);
  text.append(server_nonce).append(client_nonce);
  return text.append(std::to_string(rank)).append("/").append(std::to_string(size));
}

}  // namespace rz::comm
