// The rendezvous store's server: one native thread on rank 0. It admits holders of the job's secret, keeps keys,
// relays heartbeats, and tells every rank at once when a connection ends without a goodbye.
#pragma once
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "comm/job_state.h"
#include "comm/wire.h"

namespace rz::comm {

class StoreServer {
 public:
  // `rank`: of this process. `silence`: seconds, see StoreAddress.
  StoreServer(int port, bool loopback, std::string secret, int rank, int size, std::string version, double silence);
  ~StoreServer();  // sends what is pending, then closes
  // Whether any rank came: of several processes that serve, the ranks know one.
  bool is_used();
  // Blocks until every other rank has closed its connection; the store must outlive the ranks that use it.
  void linger();

 private:
  struct Connection {
    Fd fd;
    int rank = -1;  // until admitted
    std::string in, out, nonce;
    Clock::time_point deadline;  // for admission
    Clock::time_point heard;     // the last sign of life
    bool closing = false;        // after what is pending was sent
  };
  struct Waiting {
    Connection* connection;
    uint32_t request;
    std::string key;
    Clock::time_point deadline;
  };

  void run();
  void accept_one();
  void read(Connection& connection);
  void handle(Connection& connection, Reader message);
  void admit(Connection& connection, Reader& message);
  void refuse(Connection& connection, const std::string& code, const std::string& reason);
  void set(const std::string& key, std::string value);
  void reply(Connection& connection, uint32_t request, bool found, const std::string& value);
  void send(Connection& connection, Writer message);
  void broadcast(Writer message);
  void abort(int rank, const std::string& code, const std::string& text);
  void disconnect(Connection& connection);
  void look_for_silence();

  std::string secret_, version_;
  int rank_;
  double silence_;
  Fd listener_, wake_;
  std::vector<std::unique_ptr<Connection>> connections_;
  std::vector<Waiting> waiting_;
  std::map<std::string, std::string> values_;
  Clock::time_point last_progress_ = Clock::now();
  bool aborted_ = false, told_of_strangers_ = false;

  std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  std::vector<RankStatus> ranks_;
  std::vector<bool> connected_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace rz::comm
