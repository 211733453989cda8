// The tiles of cpp/cuda/attention_hopper.h as record.cu writes those of CuTe: places as the emulator's copy engine lays them out,
// descriptors as the kernels make them, and what the driver is told of a tensor.
#include <cstdio>

#include "cuda/attention_hopper.h"
#include "sm90.h"

namespace rz::cuda {

static int encode(void*, int type, uint32_t rank, void*, const uint64_t* size, const uint64_t* stride, const uint32_t* box, const uint32_t* step,
                  int interleave, int swizzle, int, int beyond) {
  if (rank != 3) return 1;
  // CuTe names the head last.
  std::printf(" type %d rank %u size %lu %lu %lu stride %lu %lu box %u %u %u step %u %u %u interleave %d swizzle %d fill %d\n", type, rank, size[0],
              size[2], size[1], stride[1], stride[0], box[0], box[2], box[1], step[0], step[2], step[1], interleave, swizzle, beyond);
  return 0;
}

const Driver& driver() {
  static const Driver table = [] {
    Driver only;
    only.cuTensorMapEncodeTiled = encode;
    return only;
  }();
  return table;
}

template <int kRows, int kDim>
void print_tile() {
  using Tile = HopperTile<kRows, kDim>;
  constexpr int kSpan = Tile::kRow;
  std::printf("places %d %d", kRows, kDim);
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < kDim; column += 8) {
      const int at = column / Tile::kSlabColumns * Tile::kSlab + row * Tile::kRow + column % Tile::kSlabColumns * 2;
      std::printf(" %lu", emulator::swizzled(static_cast<uintptr_t>(at), kSpan));
    }
  const Tile tile{0};
  const auto columns = [&](const char* what) {
    std::printf("\n%s %d %d", what, kRows, kDim);
    for (int step = 0; step < kDim / 16; ++step) std::printf(" %016lx", tile.columns(step));
  };
  if (kRows == kTileRows) columns("left");
  columns("columns");
  std::printf("\nrows %d %d", kRows, kDim);
  for (int step = 0; step < kRows / 16; ++step) std::printf(" %016lx", tile.rows(step));
  std::printf("\n");
}

template <int kDim>
void print_map(DType dtype) {
  std::printf("map %d", kDim);
  tile_map<kDim>({reinterpret_cast<void*>(0x10000), dtype, 450 * 3 * kDim}, 450, 3);
}

}  // namespace rz::cuda

int main() {
  using namespace rz::cuda;
  print_tile<64, 64>(), print_tile<128, 64>(), print_tile<64, 96>(), print_tile<128, 96>(), print_tile<64, 128>(), print_tile<128, 128>();
  print_map<64>(rz::DType::Float16), print_map<96>(rz::DType::Float16), print_map<128>(rz::DType::Float16), print_map<128>(rz::DType::BFloat16);
}
