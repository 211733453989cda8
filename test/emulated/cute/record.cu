// What CuTe, the layout library of CUTLASS, makes of the tiles of cpp/cuda/attention_hopper.h: where each value of a tile lies in
// shared memory, the descriptors of products, and what it tells the driver of a tensor. Written to the file that is named, in
// the lines of tiles.cc. Not part of any build: README.md says how it is run.
#define CUTLASS_ENABLE_DIRECT_CUDA_DRIVER_CALL 1
#include <cstdio>
#include <cstdlib>
#include <cute/tensor.hpp>
// after it
#include <cute/atom/copy_traits_sm90_tma.hpp>
#include <cute/atom/mma_atom.hpp>

using namespace cute;

static FILE* out;

extern "C" CUresult cuTensorMapEncodeTiled(CUtensorMap*, CUtensorMapDataType type, cuuint32_t rank, void*, const cuuint64_t* size, const cuuint64_t* stride,
                                           const cuuint32_t* box, const cuuint32_t* step, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                           CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
  std::fprintf(out, " type %d rank %u size", type, rank);
  for (unsigned i = 0; i < rank; ++i) std::fprintf(out, " %llu", static_cast<unsigned long long>(size[i]));
  std::fprintf(out, " stride");
  for (unsigned i = 0; i + 1 < rank; ++i) std::fprintf(out, " %llu", static_cast<unsigned long long>(stride[i]));
  std::fprintf(out, " box");
  for (unsigned i = 0; i < rank; ++i) std::fprintf(out, " %u", box[i]);
  std::fprintf(out, " step");
  for (unsigned i = 0; i < rank; ++i) std::fprintf(out, " %u", step[i]);
  std::fprintf(out, " interleave %d swizzle %d fill %d\n", interleave, swizzle, fill);
  return CUDA_SUCCESS;
}

template <int kDim>
constexpr bool kWide = kDim % 64 == 0;

// Rows summed along their columns, as the left or right operand; and, transposed, as the right operand that is summed along rows.
template <int kDim>
using AlongColumns = std::conditional_t<kWide<kDim>, GMMA::Layout_K_SW128_Atom<half_t>, GMMA::Layout_K_SW64_Atom<half_t>>;
template <int kDim>
using AlongRows = std::conditional_t<kWide<kDim>, GMMA::Layout_MN_SW128_Atom<half_t>, GMMA::Layout_MN_SW64_Atom<half_t>>;

template <int N, GMMA::Major kRight>
auto product_from_shared() {
  if constexpr (N == 64) return SM90_64x64x16_F32F16F16_SS<GMMA::Major::K, kRight>{};
  else if constexpr (N == 96) return SM90_64x96x16_F32F16F16_SS<GMMA::Major::K, kRight>{};
  else return SM90_64x128x16_F32F16F16_SS<GMMA::Major::K, kRight>{};
}

template <class Fragment>
void descriptors(const char* what, int rows, int dim, const Fragment& fragment) {
  std::fprintf(out, "%s %d %d", what, rows, dim);
  for (int step = 0; step < size<2>(fragment); ++step) std::fprintf(out, " %016llx", static_cast<unsigned long long>((*fragment(_, 0, step).data()).desc_));
  std::fprintf(out, "\n");
}

template <int kRows, int kDim>
void tile() {
  auto* memory = static_cast<half_t*>(std::aligned_alloc(1 << 16, 1 << 16));
  const auto rows = make_tensor(make_smem_ptr(memory), tile_to_shape(AlongColumns<kDim>{}, Shape<Int<kRows>, Int<kDim>>{}, Step<_1, _2>{}));
  const auto columns = make_tensor(make_smem_ptr(memory), tile_to_shape(AlongRows<kDim>{}, Shape<Int<kDim>, Int<kRows>>{}, Step<_2, _1>{}));
  std::fprintf(out, "places %d %d", kRows, kDim);
  for (int row = 0; row < kRows; ++row)
    for (int column = 0; column < kDim; column += 8) {
      const auto at = &rows(row, column) - memory;
      // Both operands see the values at the same places, eight of a row in one piece.
      for (int i = 0; i < 8; ++i)
        if (&rows(row, column + i) - memory != at + i || &columns(column + i, row) - memory != at + i) std::abort();
      if (row < 16) std::fprintf(out, " %d", static_cast<int>(at * 2));
    }
  std::fprintf(out, "\n");
  const auto scores = make_tiled_mma(product_from_shared<kRows, GMMA::Major::K>()).get_slice(0);
  if constexpr (kRows == 64) descriptors("left", kRows, kDim, scores.make_fragment_A(scores.partition_A(rows)));
  descriptors("columns", kRows, kDim, scores.make_fragment_B(scores.partition_B(rows)));
  const auto sums = make_tiled_mma(product_from_shared<kDim, GMMA::Major::MN>()).get_slice(0);
  descriptors("rows", kRows, kDim, sums.make_fragment_B(sums.partition_B(columns)));
}

template <int kDim, class T>
void map() {
  constexpr int kColumns = kWide<kDim> ? 64 : 32, kTileRows = 64;
  using Places = std::conditional_t<kWide<kDim>, Swizzle<3, 4, 3>, Swizzle<2, 4, 3>>;
  const int rows = 450, heads = 3;
  const auto tensor = make_tensor(make_gmem_ptr(reinterpret_cast<const T*>(0x10000)), make_shape(kDim, heads, rows), make_stride(_1{}, kDim, heads * kDim));
  const auto box = composition(Places{}, smem_ptr_flag_bits<16>{}, Layout<Shape<Int<kColumns>, _1, Int<kTileRows>>, Stride<_1, _0, Int<kColumns>>>{});
  std::fprintf(out, "map %d", kDim);
  make_tma_copy(SM90_TMA_LOAD{}, tensor, box);
}

int main(int, char** argv) {
  out = std::fopen(argv[1], "w");
  tile<64, 64>(), tile<128, 64>(), tile<64, 96>(), tile<128, 96>(), tile<64, 128>(), tile<128, 128>();
  map<64, half_t>(), map<96, half_t>(), map<128, half_t>(), map<128, bfloat16_t>();
  return std::fclose(out);
}
