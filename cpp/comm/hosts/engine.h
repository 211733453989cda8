// What carries bytes between hosts: messages between two ranks over TCP, by a library that exists (Gloo). The module is a shared
// object of its own, which is opened when a job has several hosts: the addon depends on nothing of it, and its absence is a
// missing file. This header is all that both sides know.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace rz::comm {

constexpr int kEngineAbi = 1;

// One message that was posted. Memory must stay until it is done, or its connections are dropped.
class Transfer {
 public:
  virtual ~Transfer() = default;
  // Waits until it is done, or `wake` is called: true when done. Throws what went wrong with the connection.
  virtual bool wait() = 0;
  // Ends a wait in progress, or the next one. Any thread.
  virtual void wake() = 0;
};

// Connections of one rank. Calls are of any thread.
class Engine {
 public:
  virtual ~Engine() = default;
  virtual std::string title() const = 0;  // "Gloo 0.5.0"
  // A connection to `peer` that is not made yet, and what the peer must know to make it.
  virtual std::string prepare(int peer) = 0;
  // Blocks until both have called. Throws after a minute, or when connections are dropped.
  virtual void connect(int peer, const std::string& address) = 0;
  // Messages of one slot arrive in the order in which they were posted; both sides name the same number of bytes.
  virtual std::unique_ptr<Transfer> send(int peer, uint64_t slot, const void* data, size_t bytes) = 0;
  virtual std::unique_ptr<Transfer> receive(int peer, uint64_t slot, void* data, size_t bytes) = 0;
  // Cuts all connections: what is posted will not be done, and no memory is touched any more.
  virtual void drop() = 0;
};

// What the module exports as rankzero_engine, beside rankzero_engine_abi and rankzero_engine_title (that of Engine::title). `address`: of this host, numeric, on which the others
// reach it. The caller owns the result. Throws.
using OpenEngine = Engine* (*)(const std::string& address, int rank, int size);
using EngineAbi = int (*)();
using EngineTitle = const char* (*)();

}  // namespace rz::comm
