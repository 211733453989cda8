// oneDNN matmul primitives, kept by shape. Where the processor has no bfloat16 GEMM (and for float16), tiles are
// converted to float32 in bounded scratch and multiplied there.
#include "cpu/matmul.h"

#include <array>
#include <cstring>
#include <memory>
#include <unordered_map>

#include "cpu/dnnl.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"

namespace rz::cpu {
namespace {

constexpr size_t kMaxPrimitives = 1024;  // packed batches bring new row counts every step

using Key = std::array<int64_t, 8>;

struct KeyHash {
  size_t operator()(const Key& key) const {
    uint64_t hash = 0xcbf29ce484222325ull;
    for (int64_t part : key) hash = (hash ^ static_cast<uint64_t>(part)) * 0x9E3779B97F4A7C15ull, hash ^= hash >> 29;
    return hash;
  }
};

struct Gemm {
  dnnl::matmul primitive;
  dnnl::memory a, b, c, bias, scratchpad;
  int64_t scratchpad_bytes;
};

const dnnl::engine& engine() {
  static const dnnl::engine e(dnnl::engine::kind::cpu, 0);
  return e;
}

dnnl::memory::data_type dnnl_type(DType t) {
  switch (t) {
    case DType::Float32: return dnnl::memory::data_type::f32;
    case DType::BFloat16: return dnnl::memory::data_type::bf16;
    default: return dnnl::memory::data_type::undef;
  }
}

dnnl::memory::desc describe(const Matrix& x, int64_t rows, int64_t columns) {
  return {{rows, columns}, dnnl_type(x.dtype), {x.row_stride, x.column_stride}};
}

std::unique_ptr<Gemm> make_gemm(int64_t m, int64_t n, int64_t k, const Matrix& a, const Matrix& b,
                                      const Matrix& c, const View& bias, bool accumulate) {
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (accumulate) {
    dnnl::post_ops ops;
    ops.append_sum(1.0f);
    attr.set_post_ops(ops);
  }
  auto a_desc = describe(a, m, k), b_desc = describe(b, k, n), c_desc = describe(c, m, n);
  dnnl::memory::desc bias_desc;
  if (bias) bias_desc = {{1, n}, dnnl_type(bias.dtype), dnnl::memory::dims{n, 1}};
  auto pd = matmul_desc(engine(), a_desc, b_desc, bias_desc, c_desc, attr);
  auto scratchpad_desc = pd.scratchpad_desc();
  auto made = std::make_unique<Gemm>();
  made->primitive = dnnl::matmul(pd);
  made->a = dnnl::memory(a_desc, engine(), nullptr);
  made->b = dnnl::memory(b_desc, engine(), nullptr);
  made->c = dnnl::memory(c_desc, engine(), nullptr);
  if (bias) made->bias = dnnl::memory(bias_desc, engine(), nullptr);
  made->scratchpad = dnnl::memory(scratchpad_desc, engine(), nullptr);
  made->scratchpad_bytes = static_cast<int64_t>(scratchpad_desc.get_size());
  return made;
}

Gemm& cached_gemm(int64_t m, int64_t n, int64_t k, const Matrix& a, const Matrix& b, const Matrix& c,
                        const View& bias, bool accumulate) {
  static thread_local std::unordered_map<Key, std::unique_ptr<Gemm>, KeyHash> gemms;
  static thread_local int made_for = 0;
  if (made_for != num_threads()) gemms.clear(), made_for = num_threads();
  int64_t flags = index_of(a.dtype) | index_of(c.dtype) << 2 | (bias ? 1 + index_of(bias.dtype) : 0) << 4 |
                  (a.column_stride == 1) << 8 | (b.column_stride == 1) << 9 | accumulate << 10;
  Key key = {m, n, k, a.row_stride + a.column_stride, b.row_stride + b.column_stride, c.row_stride, flags, 0};
  auto& entry = gemms[key];
  if (!entry) {
    if (gemms.size() > kMaxPrimitives) {
      gemms.clear();
      return *(gemms[key] = make_gemm(m, n, k, a, b, c, bias, accumulate));
    }
    entry = make_gemm(m, n, k, a, b, c, bias, accumulate);
  }
  return *entry;
}

void multiply(int64_t m, int64_t n, int64_t k, const Matrix& a, const Matrix& b, const Matrix& c, const View& bias,
              bool accumulate) {
  static thread_local dnnl::stream stream(engine());
  apply_num_threads();
  Gemm& p = cached_gemm(m, n, k, a, b, c, bias, accumulate);
  Scratch scratch(p.scratchpad_bytes);
  p.a.set_data_handle(a.data);
  p.b.set_data_handle(b.data);
  p.c.set_data_handle(c.data);
  p.scratchpad.set_data_handle(scratch.as<void>());
  if (bias) p.bias.set_data_handle(bias.data);
  dnnl_exec_arg_t args[5] = {{DNNL_ARG_SRC, p.a.get()},
                             {DNNL_ARG_WEIGHTS, p.b.get()},
                             {DNNL_ARG_DST, p.c.get()},
                             {DNNL_ARG_SCRATCHPAD, p.scratchpad.get()},
                             {DNNL_ARG_BIAS, bias ? p.bias.get() : nullptr}};
  dnnl::error::wrap_c_api(dnnl_primitive_execute(p.primitive.get(), stream.get(), bias ? 5 : 4, args), "matmul");
}

bool has_bf16_product() {
  static const bool has = [] {
    auto bits = static_cast<unsigned>(dnnl::get_effective_cpu_isa());
    constexpr unsigned kWanted = 0xe7;  // avx512_core_bf16; the values of oneDNN are sets of bits
    return bits != 0xffffffffu && (bits & kWanted) == kWanted;
  }();
  return has;
}

// ---- float32 tiles ----

// Copies a (rows × columns) tile to float32 in the order of memory it has.
Matrix convert_tile(float* to, const Matrix& x, int64_t row, int64_t column, int64_t rows, int64_t columns) {
  const char* from = static_cast<const char*>(x.data) +
                     (row * x.row_stride + column * x.column_stride) * size_of(x.dtype);
  bool by_rows = x.column_stride == 1;
  int64_t lines = by_rows ? rows : columns, length = by_rows ? columns : rows;
  int64_t stride = (by_rows ? x.row_stride : x.column_stride) * size_of(x.dtype);
  parallel_for(lines, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) simd().to_f32[index_of(x.dtype)](to + i * length, from + i * stride, length);
  });
  return {to, DType::Float32, by_rows ? length : 1, by_rows ? 1 : length};
}

// `b_part(to, row, column, rows, columns)`: that tile of b in float32.
template <class BPart>
void multiply_by_tiles(int64_t m, int64_t n, int64_t k, const Matrix& a, const BPart& b_part, const Matrix& c,
                       const View& bias, bool accumulate) {
  constexpr int64_t kRows = 512, kColumns = 1024, kDepth = 1024;
  int64_t tm = std::min(m, kRows), tn = std::min(n, kColumns), tk = std::min(k, kDepth);
  Scratch scratch((tm * tk + tk * tn + tm * tn + 2 * tn) * 4);
  float *a_tile = scratch.as(), *b_tile = a_tile + tm * tk, *c_tile = b_tile + tk * tn, *line = c_tile + tm * tn;
  int64_t c_size = size_of(c.dtype);
  for (int64_t j = 0; j < n; j += tn)
    for (int64_t i = 0; i < m; i += tm) {
      int64_t rows = std::min(tm, m - i), columns = std::min(tn, n - j);
      Matrix sums = {c_tile, DType::Float32, columns, 1};
      for (int64_t p = 0; p < k; p += tk) {
        int64_t depth = std::min(tk, k - p);
        multiply(rows, columns, depth, convert_tile(a_tile, a, i, p, rows, depth),
                 b_part(b_tile, p, j, depth, columns), sums, View{}, p > 0);
      }
      if (bias) simd().to_f32[index_of(bias.dtype)](line, at(bias, j), columns);
      for (int64_t r = 0; r < rows; ++r) {
        float *sums = c_tile + r * columns, *old = line + tn;
        char* to = static_cast<char*>(c.data) + ((i + r) * c.row_stride + j) * c_size;
        if (bias) simd().add[0](sums, sums, line, columns);
        if (accumulate) {
          simd().to_f32[index_of(c.dtype)](old, to, columns);
          simd().add[0](sums, sums, old, columns);
        }
        simd().from_f32[index_of(c.dtype)](to, sums, columns);
      }
    }
}

void empty_product(int64_t m, int64_t n, const Matrix& c, const View& bias, bool accumulate) {
  for (int64_t i = 0; i < m; ++i) {
    char* row = static_cast<char*>(c.data) + i * c.row_stride * size_of(c.dtype);
    if (!accumulate) std::fill(row, row + n * size_of(c.dtype), 0);
    if (bias)
      for (int64_t j = 0; j < n; ++j) {
        float x, y;
        simd().to_f32[index_of(c.dtype)](&x, row + j * size_of(c.dtype), 1);
        simd().to_f32[index_of(bias.dtype)](&y, at(bias, j), 1);
        x += y;
        simd().from_f32[index_of(c.dtype)](row + j * size_of(c.dtype), &x, 1);
      }
  }
}

bool is_direct(const Matrix& a, const Matrix& c, const View& bias) {
  if (bias && bias.dtype == DType::Float16) return false;
  return a.dtype == DType::Float32 ? c.dtype == DType::Float32
                                   : a.dtype == DType::BFloat16 && c.dtype != DType::Float16 && has_bf16_product();
}

template <class Multiply>
void checked(int64_t m, int64_t n, int64_t k, const Matrix& a, const Multiply& multiply) {
  try {
    multiply();
  } catch (const dnnl::error& e) {
    fail("ERR_DEVICE", "[matmul] oneDNN: ", e.what(), " (m ", m, ", n ", n, ", k ", k, ", ", name_of(a.dtype), ")");
  }
}

}  // namespace

void gemm(int64_t m, int64_t n, int64_t k, const Matrix& a, const Matrix& b, const Matrix& c, const View& bias,
          bool accumulate) {
  if (m == 0 || n == 0) return;
  if (k == 0) return empty_product(m, n, c, bias, accumulate);
  checked(m, n, k, a, [&] {
    if (is_direct(a, c, bias)) return multiply(m, n, k, a, b, c, bias, accumulate);
    auto part = [&](float* to, int64_t row, int64_t column, int64_t rows, int64_t columns) {
      return convert_tile(to, b, row, column, rows, columns);
    };
    multiply_by_tiles(m, n, k, a, part, c, bias, accumulate);
  });
}

// Every element of c is one sum over all of k, in the order of the GEMM with the whole of b: a band of b's columns gives the same
// bits as all of them.
void gemm(int64_t m, int64_t n, int64_t k, const Matrix& a, const QuantizedMatrix& w, bool transposed, const Matrix& c,
          const View& bias, bool accumulate) {
  if (m == 0 || n == 0) return;
  if (k == 0) return empty_product(m, n, c, bias, accumulate);
  checked(m, n, k, a, [&] {
    if (!is_direct(a, c, bias)) {
      auto part = [&](float* to, int64_t row, int64_t column, int64_t rows, int64_t columns) -> Matrix {
        if (transposed) {
          w.widen_tile_to_f32(to, a.dtype, column, row, columns, rows);
          return {to, DType::Float32, 1, rows};
        }
        w.widen_tile_to_f32(to, a.dtype, row, column, rows, columns);
        return {to, DType::Float32, columns, 1};
      };
      return multiply_by_tiles(m, n, k, a, part, c, bias, accumulate);
    }
    constexpr int64_t kElements = 1 << 20, kLeast = 64;
    const int64_t band = std::min(n, std::max(kLeast, kElements / k / kLeast * kLeast)), c_size = size_of(c.dtype);
    Scratch values(band * k * size_of(a.dtype)), sums(band < n ? m * band * c_size : 0);
    for (int64_t j = 0; j < n; j += band) {
      const int64_t columns = std::min(band, n - j);
      const View part = bias ? View{at(bias, j), bias.dtype, columns} : View{};
      const Matrix b = {values.as<void>(), a.dtype, transposed ? 1 : columns, transposed ? k : 1};
      if (transposed) w.widen_tile(b.data, a.dtype, j, 0, columns, k);
      else w.widen_tile(b.data, a.dtype, 0, j, k, columns);
      if (band == n) return multiply(m, n, k, a, b, c, bias, accumulate);
      // oneDNN has another GEMM where the rows of c do not follow each other, with other last bits.
      const Matrix dense = {sums.as<void>(), c.dtype, columns, 1};
      auto each_row = [&](auto copy) {
        parallel_for(m, std::max<int64_t>(1, 4096 / columns), [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i)
            copy(static_cast<char*>(c.data) + (i * c.row_stride + j) * c_size, sums.as<char>() + i * columns * c_size);
        });
      };
      const auto bytes = static_cast<size_t>(columns * c_size);
      if (accumulate) each_row([&](const char* in_c, char* in_band) { std::memcpy(in_band, in_c, bytes); });
      multiply(m, columns, k, a, b, dense, part, accumulate);
      each_row([&](char* in_c, const char* in_band) { std::memcpy(in_c, in_band, bytes); });
    }
  });
}

const char* dnnl_version() {
  static const std::string text = [] {
    const dnnl_version_t* v = ::dnnl_version();
    return std::to_string(v->major) + "." + std::to_string(v->minor) + "." + std::to_string(v->patch);
  }();
  return text.c_str();
}

}  // namespace rz::cpu
