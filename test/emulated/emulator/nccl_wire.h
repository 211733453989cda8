// How the ranks of an emulated communicator reach each other: one TCP connection for each pair, also within a host, served by
// a thread of the communicator. What was sent waits at the receiver until it is taken; nothing here waits for a stream.
#pragma once
#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

namespace rz::emulator {

using Bytes = std::vector<char>;

class Wire {
 public:
  // As a unique id, which is 128 bytes: where its maker listens, until `size` ranks have come. Throws std::system_error.
  static void make_id(char* id);
  // Blocks until all ranks have come.
  static std::shared_ptr<Wire> connect(const char* id, int rank, int size);
  ~Wire();

  enum Kind : uint32_t { kCollective, kMessage, kReceipt, kGoodbye };
  // `signature` says what call this is of: take() compares it.
  void send(int to, Kind kind, uint64_t sequence, uint64_t signature, Bytes bytes);
  bool has(int from, Kind kind, uint64_t sequence);
  // What has() found. Throws where the sender made another call.
  Bytes take(int from, Kind kind, uint64_t sequence, uint64_t signature);

  // Empty; or what happened to a peer that is gone without a goodbye.
  std::string failure();
  // Returns when what was sent is on its way; peers may go on.
  void close();
  // Peers see that this rank is gone.
  void abort();

 private:
  struct Header {
    uint64_t bytes, sequence, signature;
    uint32_t kind, unused;
  };
  struct Peer {
    int socket = -1;
    std::deque<Bytes> out;
    size_t written = 0;  // of the first of them
    Header header;
    Bytes in;
    size_t read = 0;  // of the header, then of `in`
    bool has_header = false, said_goodbye = false;
  };
  struct Received {
    uint64_t signature;
    Bytes bytes;
  };
  Wire() = default;
  void serve();
  bool wait_for_sockets();
  void write(Peer& peer);
  void read(int rank, Peer& peer);
  void received(int rank, Peer& peer);
  void lose(int rank, Peer& peer, const std::string& why);
  void wake();

  std::mutex mutex_;
  std::vector<Peer> peers_;
  std::map<std::tuple<int, uint32_t, uint64_t>, Received> received_;
  std::string failure_;
  bool closing_ = false, aborted_ = false;
  int wake_ = -1;
};

}  // namespace rz::emulator
