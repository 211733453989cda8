// A rank's connection to the rendezvous store, kept for its life: keys, heartbeats, and news of the other ranks.
// A native thread reads it, since the JavaScript thread may be blocked.
#pragma once
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <thread>

#include "comm/job_state.h"
#include "comm/wire.h"

namespace rz::comm {

struct StoreAddress {
  std::string host;
  int port;
  std::string version;    // of the package: ranks of a job have the same
  std::string host_name;  // of this rank's host; empty when all ranks are on one
  double silence = 60;    // seconds without a sign of life after which a rank or its host counts as dead
  // Read again on every attempt: on one host the secret may be a file that rank 0 is about to write.
  std::function<std::string()> secret;
};

class Store {
 public:
  // Retries until somebody listens. Errors: ERR_STORE_SECRET, ERR_STORE_WORLD, ERR_STORE_VERSION, ERR_STORE_ADDRESS, ERR_TIMEOUT.
  Store(const StoreAddress& address, std::shared_ptr<JobState> state);
  ~Store();  // without leave(): the others see this rank die

  void set(const std::string& key, const std::string& value);
  // Waits for the key; throws when the job is aborted, ERR_TIMEOUT when no rank makes progress.
  // `notice` is printed once if that takes more than 10 s.
  std::string get(const std::string& key, const Doing& doing, int owner, const std::string& notice = "");
  // The rank whose process serves the store.
  int server() const { return server_; }
  // Of this host and of the store's, as the connection has them.
  std::string own_address() const { return comm::own_address(fd_.get()); }
  std::string server_address() const { return comm::peer_address(fd_.get()); }
  // Says goodbye: no more calls come from this rank, and the end of its connection is not a death.
  void leave();

 private:
  struct Pending {
    bool done = false, found = false;
    std::string value;
  };
  void handshake(const StoreAddress& address);
  bool try_handshake(Fd& fd, const std::string& secret);
  void run();
  void handle(Reader message);
  void heartbeat();
  void send(Writer message);
  Pending request(Message type, const std::string& key, uint64_t argument, const Doing& doing, int owner, const std::string& notice);

  std::string server_text() const;

  std::shared_ptr<JobState> state_;
  std::string version_, host_name_;
  double silence_;
  int server_ = 0;
  uint32_t server_pid_ = 0;
  Fd fd_, wake_;
  std::mutex send_mutex_;
  std::map<uint32_t, Pending> pending_;  // under the state's mutex
  uint32_t next_request_ = 1;
  bool closed_ = false;    // under the state's mutex: no reply will come
  bool stop_ = false;      // under the state's mutex
  std::atomic<bool> goodbye_{false};
  std::string buffer_;
  std::thread thread_;
};

}  // namespace rz::comm
