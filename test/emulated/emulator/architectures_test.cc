// Which devices a build's kernels run on, by the words that CMake writes.
#include "cuda/architectures.h"

#include "../../native/kernels/check.h"

namespace {

void test_all() {
  if (!device_under_test()) return;
  const auto expect = [](const char* architectures, int capability, bool runs) {
    report(std::string("kernels for ") + architectures + " on " + std::to_string(capability),
           rz::cuda::runs_on(architectures, capability / 10, capability % 10) == runs);
  };
  constexpr const char *kTwelve = "80, 90a-real", *kThirteen = "80-real, 90a-real, 100-real, 120";
  for (int capability : {80, 86, 89, 90, 100, 120}) expect(kTwelve, capability, true), expect(kThirteen, capability, true);
  expect(kTwelve, 75, false);
  expect(kThirteen, 75, false);
  expect(kThirteen, 103, true);
  expect(kThirteen, 130, true);
  expect("80-real, 90a-real", 100, false);
  expect("90a", 90, true), expect("90a", 100, false), expect("90a", 80, false);
  expect("100f", 103, true), expect("100f", 120, false);
  expect("native", 70, true);
}
Test registered(test_all);

}  // namespace
