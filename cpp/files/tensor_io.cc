#include "files/tensor_io.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <exception>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "core/error.h"
#include "files/convert.h"

namespace rz::files {
namespace {

std::atomic<int> threads_setting{0};

// Splits [0, count) into pieces of whole `grain`s and runs them on threads; the first error of any is thrown.
void parallel(int64_t count, int64_t grain, int threads, const std::function<void(int64_t, int64_t)>& run) {
  int64_t grains = (count + grain - 1) / grain;
  int64_t workers = std::clamp<int64_t>(threads, 1, std::max<int64_t>(grains, 1));
  if (workers == 1) return run(0, count);
  std::exception_ptr failure;
  std::mutex mutex;
  auto piece = [&](int64_t worker) {
    try {
      int64_t begin = std::min(count, grains * worker / workers * grain);
      int64_t end = std::min(count, grains * (worker + 1) / workers * grain);
      run(begin, end);
    } catch (...) {
      std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  for (int64_t worker = 1; worker < workers; ++worker) {
    try {
      others.emplace_back(piece, worker);
    } catch (const std::system_error&) {  // no more threads: this one does the piece
      piece(worker);
    }
  }
  piece(0);
  for (std::thread& thread : others) thread.join();
  if (failure) std::rethrow_exception(failure);
}

// Writes through one descriptor wait for each other: threads would gain nothing there.
int threads_for(const Target& to, int64_t bytes) { return to.backing < 0 && bytes >= static_cast<int64_t>(kParallel) ? read_threads() : 1; }

// Room for a chunk that stays in the cache between a read and a write. Of the calling thread.
std::byte* scratch(int which, size_t bytes) {
  thread_local std::vector<std::byte> rooms[2];
  auto& room = rooms[which];
  if (room.size() < bytes) room.resize(bytes);
  return room.data();
}

// Where elements [begin, …) of the target are made: in place, or in scratch that `put` then writes through the descriptor.
std::byte* place(const Target& to, int64_t begin, int64_t count) {
  int64_t width = size_of(to.dtype);
  if (to.backing < 0) return static_cast<std::byte*>(to.data) + begin * width;
  return scratch(1, static_cast<size_t>(count * width));
}

void put(const Target& to, int64_t begin, const void* from, int64_t count) {
  if (to.backing < 0) return;
  int64_t width = size_of(to.dtype);
  const std::byte* data = static_cast<const std::byte*>(from);
  size_t left = static_cast<size_t>(count * width);
  int64_t offset = to.backing_offset + begin * width;
  while (left > 0) {
    ssize_t written = pwrite(to.backing, data, left, offset);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) fail("ERR_OUT_OF_MEMORY", "no pages for ", left, " bytes of shared memory: ", std::strerror(errno));
    data += written, offset += written, left -= static_cast<size_t>(written);
  }
}

// Elements [begin, end) of the range, through a chunk of scratch unless the bytes can go straight to their place.
void read_piece(const File& file, int64_t offset, const Target& to, int64_t begin, int64_t end, DType src_dtype, int64_t first = 0) {
  int64_t width = size_of(src_dtype);
  bool same = src_dtype == to.dtype;
  if (same && to.backing < 0) {
    file.read(offset + begin * width, place(to, first + begin, end - begin), static_cast<size_t>((end - begin) * width));
    return;
  }
  int64_t step = static_cast<int64_t>(to.backing < 0 ? kChunk : kCached) / width;
  for (int64_t i = begin; i < end; i += step) {
    int64_t n = std::min(step, end - i);
    std::byte* raw = scratch(0, static_cast<size_t>(n * width));
    file.read(offset + i * width, raw, static_cast<size_t>(n * width));
    if (same) {
      put(to, first + i, raw, n);
      continue;
    }
    std::byte* out = place(to, first + i, n);
    convert(out, to.dtype, raw, src_dtype, n);
    put(to, first + i, out, n);
  }
}

// Rows [begin, end). Narrow gaps are read over: one large read and a gather beat many small reads.
void read_rows_piece(const File& file, int64_t offset, const Target& to, Rows shape, int64_t begin, int64_t end, DType src_dtype) {
  int64_t width = size_of(src_dtype), row = shape.row_elements, stride = shape.row_stride;
  bool read_over = row * width < 64 * 1024 && stride <= 16 * row && stride * width <= static_cast<int64_t>(kChunk);
  if (!read_over) {
    for (int64_t r = begin; r < end; ++r) read_piece(file, offset + r * stride * width, to, 0, row, src_dtype, r * row);
    return;
  }
  int64_t step = std::max<int64_t>(1, static_cast<int64_t>(kChunk) / (stride * width));
  for (int64_t r = begin; r < end; r += step) {
    int64_t n = std::min(step, end - r);
    int64_t span = ((n - 1) * stride + row) * width;  // not past the last wanted byte: it may be the file's
    std::byte* raw = scratch(0, static_cast<size_t>(span));
    file.read(offset + r * stride * width, raw, static_cast<size_t>(span));
    std::byte* out = place(to, r * row, n * row);
    for (int64_t i = 0; i < n; ++i) {
      convert(out + i * row * size_of(to.dtype), to.dtype, raw + i * stride * width, src_dtype, row);
    }
    put(to, r * row, out, n * row);
  }
}

}  // namespace

int read_threads() {
  int setting = threads_setting.load(std::memory_order_relaxed);
  if (setting > 0) return setting;
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 2, 4);
}

void set_read_threads(int threads) {
  if (threads < 1 || threads > 64) fail("ERR_ARGUMENT", "files are read by 1 to 64 threads, not ", threads);
  threads_setting.store(threads, std::memory_order_relaxed);
}

void expect_convertible(const char* what, const File& file, DType from, DType to) {
  if (from == to || (is_floating(from) && is_floating(to))) return;
  fail("ERR_DTYPE", "[", what, "] ", file.path(), ": ", name_of(from), " is not converted to ", name_of(to),
       "; only floating dtypes convert");
}

void read_tensor(const File& file, int64_t offset, const Target& to, int64_t numel, DType src_dtype) {
  int64_t width = size_of(src_dtype);
  parallel(numel, static_cast<int64_t>(kChunk) / width, threads_for(to, numel * width), [&](int64_t begin, int64_t end) {
    read_piece(file, offset, to, begin, end, src_dtype);
  });
}

void read_rows(const File& file, int64_t offset, const Target& to, Rows shape, DType src_dtype) {
  if (shape.rows == 0 || shape.row_elements == 0) return;
  int64_t bytes = shape.rows * shape.row_elements * size_of(src_dtype);
  if (shape.row_elements == shape.row_stride || shape.rows == 1) {
    return read_tensor(file, offset, to, shape.rows * shape.row_elements, src_dtype);
  }
  int64_t grain = std::max<int64_t>(1, static_cast<int64_t>(kChunk) / (shape.row_stride * size_of(src_dtype)));
  parallel(shape.rows, grain, threads_for(to, bytes), [&](int64_t begin, int64_t end) {
    read_rows_piece(file, offset, to, shape, begin, end, src_dtype);
  });
}

void write_tensor(File& file, int64_t offset, const void* src, DType src_dtype, int64_t numel, DType dst_dtype) {
  int64_t width = size_of(dst_dtype);
  if (src_dtype == dst_dtype) return file.write(offset, src, static_cast<size_t>(numel * width));
  int64_t step = static_cast<int64_t>(kChunk) / width;
  std::vector<std::byte> scratch(static_cast<size_t>(std::min(step, numel) * width));
  const std::byte* from = static_cast<const std::byte*>(src);
  for (int64_t i = 0; i < numel; i += step) {
    int64_t n = std::min(step, numel - i);
    convert(scratch.data(), dst_dtype, from + i * size_of(src_dtype), src_dtype, n);
    file.write(offset + i * width, scratch.data(), static_cast<size_t>(n * width));
  }
}

}  // namespace rz::files
