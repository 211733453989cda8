#include <array>

#include "check.h"
#include "core/philox.h"
#include "ops/dropout.h"

static void test_dropout(DType t, int64_t rows, int64_t columns, int64_t first, float p) {
  const std::string name = begin(label("dropout", t, {rows, columns, first}));
  const uint64_t seed = 42, key = rz::philox::key_of("dropout/3/model.layers.0.mlp");
  Values numbers(rows);
  for (int64_t r = 0; r < rows; ++r) numbers[r] = static_cast<double>((r * 977 + 5) << 22 | (r * 31 + 1));
  Buffer x = random_buffer(t, rows * columns), y(t, Values(rows * columns)), ids(DType::Int64, numbers);
  execute(rz::Dropout{y.view(), x.view(), ids.view(), columns, first, p, seed, {key}});
  const Values xv = x.values(), yv = y.values();
  Values want(rows * columns);
  bool same = true;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) {
      const uint64_t element = (static_cast<uint64_t>(numbers[r]) << 20) + static_cast<uint64_t>(first + c), i = r * columns + c;
      const float draw = rz::philox::uniform(rz::philox::block(seed, key, element / 4)[element % 4]);
      want[i] = draw < p ? 0 : xv[i] / (1 - static_cast<double>(p));
      same &= (want[i] == 0) == (yv[i] == 0) || xv[i] == 0;
    }
  report(name + ": what is dropped", same);
  expect_close(name, yv, want, t == DType::Float32 ? 1e-6 : 1e-2);
}

static void test_all() {
  for (DType t : {DType::Float32, DType::BFloat16, DType::Float16})
    for (auto [rows, columns, first] : {std::array<int64_t, 3>{7, 33, 0}, {3, 64, 66}, {20, 1, 5}, {2, 2500, 3}, {1, 7, (1 << 20) - 7}})
      for (float p : {0.1f, 0.5f}) test_dropout(t, rows, columns, first, p);
  Buffer x = random_buffer(DType::Float32, 50 * 77), y(DType::Float32, Values(50 * 77));
  Values numbers(50);
  for (int64_t r = 0; r < 50; ++r) numbers[r] = static_cast<double>(r);
  Buffer ids(DType::Int64, numbers);
  expect_thread_independent("dropout", y, [&] { execute(rz::Dropout{y.view(), x.view(), ids.view(), 77, 0, 0.3f, 1, {2}}); });
}
static Test registered(test_all);
