// Streams of the emulated device: queues whose heads run in random order, bound by events alone. So a missing event shows as a
// wrong result. Work runs on whatever host thread enqueues, asks or waits; one at a time. A queue is finite: who enqueues more
// waits, and keeps every other call of the driver waiting meanwhile.
#pragma once
#include <cstdint>
#include <functional>

struct CUstream_st;
struct CUevent_st;

namespace rz::emulator {

using Ready = std::function<bool()>;

// `ready` may be empty. Now and then some work, not necessarily this, runs at once. What is no command takes no place in the
// queue: what the emulator does for itself, and later parts of one command.
void enqueue(CUstream_st* stream, std::function<void()> run, Ready ready = {}, bool is_command = true);
// As the device does by itself: some work that is ready runs. False: there is none.
bool advance();
// What the work threw first; empty: nothing. It stays.
const char* failure();
uint64_t next_seed();

}  // namespace rz::emulator
