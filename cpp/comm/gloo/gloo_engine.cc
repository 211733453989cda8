// The module rankzero_gloo.so: Gloo's device, context, pairs and unbound buffers under the interface of comm/hosts/engine.h.
// One context for the whole job, of which only the pairs that some group needs are connected. Waits never time out here, for
// a timeout of Gloo closes every pair: who waits is woken and looks around (Transfer::wake).
#include <gloo/config.h>
#include <gloo/transport/context.h>
#include <gloo/transport/device.h>
#include <gloo/transport/pair.h>
#include <gloo/transport/tcp/device.h>
#include <gloo/transport/unbound_buffer.h>

#include <chrono>
#include <mutex>
#include <vector>

#include "comm/hosts/engine.h"
#include "core/error.h"

namespace rz::comm {
namespace {

namespace transport = gloo::transport;

const std::string kTitle = "Gloo " + std::to_string(GLOO_VERSION_MAJOR) + "." + std::to_string(GLOO_VERSION_MINOR) + "." + std::to_string(GLOO_VERSION_PATCH);
constexpr auto kNever = std::chrono::hours(24 * 365);
constexpr auto kConnect = std::chrono::seconds(12);  // Gloo waits five times as long for a connection

template <class Call>
auto guarded(Call call) -> decltype(call()) {
  try {
    return call();
  } catch (const std::exception& error) {
    std::string text = error.what();
    // "[file:line] what": the place says nothing to a user.
    if (text.starts_with("[")) text = text.substr(std::min(text.size(), text.find(']') + 2));
    throw Error("ERR_CONNECTION", text);
  }
}

class GlooTransfer final : public Transfer {
 public:
  GlooTransfer(transport::Context& context, void* data, size_t bytes, bool sends) : buffer_(context.createUnboundBuffer(data, bytes)), sends_(sends) {}

  bool wait() override {
    return guarded([&] {
      const auto limit = std::chrono::duration_cast<std::chrono::milliseconds>(kNever);
      return sends_ ? buffer_->waitSend(nullptr, limit) : buffer_->waitRecv(nullptr, limit);
    });
  }
  void wake() override { sends_ ? buffer_->abortWaitSend() : buffer_->abortWaitRecv(); }
  transport::UnboundBuffer& buffer() { return *buffer_; }

 private:
  std::unique_ptr<transport::UnboundBuffer> buffer_;
  bool sends_;
};

class GlooEngine final : public Engine {
 public:
  GlooEngine(const std::string& address, int rank, int size) {
    guarded([&] {
      context_ = transport::tcp::CreateDevice(transport::tcp::attr(address.c_str()))->createContext(rank, size);
      context_->setTimeout(kConnect);
      pairs_.resize(static_cast<size_t>(size));
    });
  }
  std::string title() const override { return kTitle; }
  std::string prepare(int peer) override {
    return guarded([&] {
      transport::Pair* pair = context_->createPair(peer).get();
      {
        std::lock_guard lock(mutex_);
        pairs_[static_cast<size_t>(peer)] = pair;
      }
      const std::vector<char> bytes = pair->address().bytes();
      return std::string(bytes.begin(), bytes.end());
    });
  }
  void connect(int peer, const std::string& address) override {
    guarded([&] { context_->getPair(peer)->connect({address.begin(), address.end()}); });
  }
  std::unique_ptr<Transfer> send(int peer, uint64_t slot, const void* data, size_t bytes) override {
    return post(const_cast<void*>(data), bytes, true, [&](auto& buffer) { buffer.send(peer, slot, 0, bytes); });
  }
  std::unique_ptr<Transfer> receive(int peer, uint64_t slot, void* data, size_t bytes) override {
    return post(data, bytes, false, [&](auto& buffer) { buffer.recv(peer, slot, 0, bytes); });
  }
  // Hard: a peer that still sends is told.
  void drop() override {
    std::lock_guard lock(mutex_);
    for (transport::Pair* pair : pairs_)
      if (pair) pair->close();
  }

 private:
  template <class Post>
  std::unique_ptr<Transfer> post(void* data, size_t bytes, bool sends, Post post) {
    return guarded([&] {
      auto transfer = std::make_unique<GlooTransfer>(*context_, data, bytes, sends);
      post(transfer->buffer());
      return std::unique_ptr<Transfer>(std::move(transfer));
    });
  }
  std::shared_ptr<transport::Context> context_;
  std::mutex mutex_;
  std::vector<transport::Pair*> pairs_;  // those that were made
};

}  // namespace

extern "C" {
__attribute__((visibility("default"))) const char* rankzero_engine_title() { return kTitle.c_str(); }
__attribute__((visibility("default"))) int rankzero_engine_abi() { return kEngineAbi; }
__attribute__((visibility("default"))) Engine* rankzero_engine(const std::string& address, int rank, int size) { return new GlooEngine(address, rank, size); }
}

}  // namespace rz::comm
