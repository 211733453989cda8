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
  // Read again on every attempt: on one host the secret may be a file that rank 0 is about to write.
  std::function<std::string()> secret;
};

class Store {
 public:
  // Retries until rank 0 listens. Errors: ERR_STORE_SECRET, ERR_STORE_WORLD, ERR_STORE_ADDRESS, ERR_TIMEOUT.
  Store(const StoreAddress& address, std::shared_ptr<JobState> state);
  ~Store();  // without leave(): the others see this rank die

  void set(const std::string& key, const std::string& value);
  // Waits for the key; throws when the job is aborted, ERR_TIMEOUT when no rank makes progress.
  // `notice` is printed once if that takes more than 10 s.
  std::string get(const std::string& key, const Doing& doing, int owner, const std::string& notice = "");
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

  std::shared_ptr<JobState> state_;
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
