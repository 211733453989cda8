// Runs every kernel test under each instruction set, and with oneDNN held to AVX2, by starting itself again. With --here: once;
// with --cuda: once, every op on the device that has it. --here NAME, --cuda NAME: of files whose name has NAME in it; a third
// argument shows every check.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "check.h"
#include "core/runtime.h"
#include "cpu/threads.h"

static int failures = 0, checks = 0;
static bool verbose = false;

struct Registered {
  void (*run)();
  std::string file;
};
static std::vector<Registered>& tests() {
  static std::vector<Registered> all;
  return all;
}

Test::Test(void (*run)(), const char* file) { tests().push_back({run, std::strrchr(file, '/') ? std::strrchr(file, '/') + 1 : file}); }

void report(const std::string& name, bool ok, const std::string& detail) {
  ++checks;
  if (!ok) ++failures;
  if (!ok || verbose) std::printf("%s %s  %s\n", ok ? "ok" : "FAIL", name.c_str(), detail.c_str());
}

std::mt19937& random_source() {
  static std::mt19937 source;
  return source;
}

std::string begin(const std::string& name) {
  const char* seed = std::getenv("RANKZERO_TEST_SEED");
  uint32_t hash = 0x811c9dc5;
  for (char c : name + (seed ? seed : "")) hash = (hash ^ static_cast<uint8_t>(c)) * 0x01000193;
  random_source().seed(hash);
  Buffer::forget_made();
  return name;
}

void expect_thread_independent(const std::string& name, Buffer& out, const std::function<void()>& run) {
  Buffer start = out;
  rz::cpu::set_num_threads(1);
  run();
  Buffer one = out;
  rz::cpu::set_num_threads(3);
  out = start;
  run();
  rz::cpu::set_num_threads(1);
  report(name + " (1 and 3 threads)", out.same_bits(one));
}

static rz::Runtime* runtime = nullptr;
rz::Runtime* runtime_under_test() { return runtime; }
rz::Stream* device_under_test() { return runtime ? runtime->compute(rz::Device::Cuda) : nullptr; }

static int run_here(const char* where, const char* only) {
  rz::cpu::set_num_threads(1);
  for (const Registered& test : tests())
    if (test.file.find(only) != std::string::npos) {
      begin(test.file);
      test.run();
    }
  std::printf("%s %d checks, %s, oneDNN %s\n", failures ? "FAIL" : "ok", checks, where, rz::cpu::dnnl_version());
  return failures != 0;
}

int main(int argc, char** argv) {
  const char* only = argc > 2 ? argv[2] : "";
  verbose = argc > 3;
  if (argc > 1 && !std::strcmp(argv[1], "--cuda")) {
    rz::Runtime here;
    runtime = &here;
    device_under_test();  // an error of opening it is one of the program
    return run_here("device cuda", only);
  }
  if (argc > 1 && !std::strcmp(argv[1], "--here")) return run_here((std::string("isa ") + rz::cpu::isa_name()).c_str(), only);
  const char* settings[][2] = {{"RANKZERO_ISA", ""},
                               {"RANKZERO_ISA", "avx512"},
                               {"RANKZERO_ISA", "avx2"},
                               {"RANKZERO_ISA", "baseline"},
                               {"DNNL_MAX_CPU_ISA", "AVX2"}};
  int failed = 0;
  for (auto [variable, value] : settings) {
    std::printf("%s=%s\n", variable, value);
    std::fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
      setenv(variable, value, 1);
      execl("/proc/self/exe", argv[0], "--here", static_cast<char*>(nullptr));
      _exit(127);
    }
    int status = 0;
    waitpid(child, &status, 0);
    failed |= status != 0;
  }
  return failed;
}
