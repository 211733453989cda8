// Streams of the emulated device: queues whose heads run in random order, bound by events alone. So a missing event shows as a
// wrong result. Work runs on whatever host thread enqueues, asks or waits; one at a time. A queue is finite: who enqueues more
// waits, and keeps every other call of the driver waiting meanwhile.
#pragma once
#include <cstdint>
#include <functional>
#include <string>

struct CUstream_st;
struct CUevent_st;

namespace rz::emulator {

using Ready = std::function<bool()>;

// `ready` may be empty. Now and then some work, not necessarily this, runs at once. What is no command takes no place in the
// queue: what the emulator does for itself, and later parts of one command.
void enqueue(CUstream_st* stream, std::function<void()> run, Ready ready = {}, bool is_command = true);
// A wait of the stream until `ready`, which the host brings about; `call` made it.
void enqueue_wait_for_host(CUstream_st* stream, const char* call, Ready ready);

// In a call that may wait for all of the device's work, which this does. If there is work then that waits for the host, which may
// need locks that a driver holds in such a call, the device fails with an error that names both. False: it has failed. Other calls
// go on meanwhile, since work that waits for a peer which died is cut off by one.
bool wait_for_device(const std::string& call);
// The same where a driver is not known to wait, but should not be relied on.
bool expect_no_wait_for_host(const std::string& call);
// The first time for each `code`, which is loaded then.
bool first_use(const void* code, const std::string& call);

// As the device does by itself: some work that is ready runs. False: there is none.
bool advance();
// What the work threw first; empty: nothing. It stays.
const char* failure();
uint64_t next_seed();

}  // namespace rz::emulator
