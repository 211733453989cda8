#include "comm/death.h"

#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cstdio>
#include <string>

#include "core/settings.h"

namespace rz::comm {

void die_with_launcher() {
  const pid_t launcher = settings().launcher;
  if (launcher <= 1) return;
  if (getppid() == launcher) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != launcher) raise(SIGKILL);  // it died before the line above
    return;
  }
  // A helper process of a rank, or a rank whose launcher is dead already (perhaps not reaped yet).
  char state = 0;
  std::string stat = "/proc/" + std::to_string(launcher) + "/stat";
  if (FILE* file = std::fopen(stat.c_str(), "re")) {
    if (std::fscanf(file, "%*d (%*[^)]) %c", &state) != 1) state = 0;
    std::fclose(file);
  }
  if (state == 0 || state == 'Z' || state == 'X') raise(SIGKILL);
}

}  // namespace rz::comm
