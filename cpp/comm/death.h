// A rank dies with its launcher: the kernel kills it, so that no rank is left behind whatever happens to the launcher.
#pragma once

namespace rz::comm {

// Where RANKZERO_LAUNCHER_PID names the parent process; once, when the addon is loaded.
void die_with_launcher();

}  // namespace rz::comm
