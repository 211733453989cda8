// The module with the engine between hosts: where it is, and what is wrong with it.
#pragma once
#include "comm/hosts/engine.h"
#include "core/library.h"

namespace rz::comm {

// Beside the addon, or the file that RANKZERO_GLOO_PATH names. Loaded once.
const LibraryReport& engine_report();
// Why a job of several hosts cannot run here and what to do about it; empty where it can.
std::string engine_problem();
// Errors: ERR_BACKEND with engine_problem().
std::unique_ptr<Engine> open_engine(const std::string& address, int rank, int size);

}  // namespace rz::comm
