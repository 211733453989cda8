// Files: tensor bytes read by ranges and written by ranges, on the current stream. A file handle may be closed as soon
// as its work is enqueued: the descriptor stays open until the last of it has run.
#include <cstring>

#include "binding/addon.h"
#include "files/tensor_io.h"

namespace rz::binding {
namespace {

using files::File;
using FilePtr = std::shared_ptr<File>;
using FileTable = HandleTable<FilePtr, HandleKind::File>;

FileTable& table(Args& a) { return a.state().concept_state<FileTable>("files"); }

// The file of a call that enqueues: it remembers the stream.
FilePtr file_on_stream(Args& a, size_t i) {
  FilePtr file = table(a).at(a.number(i));
  file->streams |= 1u << a.stream()->index();
  return file;
}

int64_t offset_at(Args& a, size_t i) {
  int64_t offset = a.integer(i);
  if (offset < 0) fail("ERR_ARGUMENT", "a file offset cannot be ", offset);
  return offset;
}

TensorRef tensor_on_stream(Args& a, size_t i) {
  TensorRef t = a.host_tensor(i);
  t.storage->used_on(a.stream());
  return t;
}

files::Target target_of(const TensorRef& t) { return {t.data(), t.dtype, t.storage->backing(), t.offset * size_of(t.dtype)}; }

napi_value file_open(Args& a) { return a.from(table(a).insert(File::open(a.string(0)))); }

// (path, bytes to reserve or 0) → handle
napi_value file_create(Args& a) {
  if (a.runtime().is_dry()) fail("ERR_DRY_RUN", "a dry run has no values to write to ", a.string(0));
  return a.from(table(a).insert(File::create(a.string(0), a.missing(1) ? 0 : offset_at(a, 1))));
}

napi_value file_size(Args& a) { return a.from(static_cast<double>(table(a).at(a.number(0))->size())); }

napi_value file_close(Args& a) { return a.from(table(a).release(a.number(0))); }

napi_value file_set_threads(Args& a) {
  files::set_read_threads(static_cast<int>(a.integer(0)));
  return a.undefined();
}

// (file, offset, length) → promise of an ArrayBuffer; for headers, on libuv's pool
napi_value file_read_bytes(Args& a) {
  FilePtr file = table(a).at(a.number(0));
  int64_t offset = offset_at(a, 1), length = offset_at(a, 2);
  if (offset + length > file->size()) {
    fail("ERR_FILE_TRUNCATED", file->path(), " is cut short: ", length, " bytes were wanted at offset ", offset,
         " but the file has ", file->size());
  }
  auto bytes = std::make_shared<std::vector<std::byte>>(static_cast<size_t>(length));
  return run_async(
      a.env(), [file, offset, bytes] { file->read(offset, bytes->data(), bytes->size()); },
      [bytes](Napi::Env env) -> Napi::Value {
        Napi::ArrayBuffer out = Napi::ArrayBuffer::New(env, bytes->size());
        std::memcpy(out.Data(), bytes->data(), bytes->size());
        return out;
      });
}

// (file, offset, dst, dtype in the file)
napi_value file_read(Args& a) {
  FilePtr file = file_on_stream(a, 0);
  int64_t offset = offset_at(a, 1);
  TensorRef dst = tensor_on_stream(a, 2);
  DType stored = a.dtype(3);
  files::expect_convertible("fileRead", *file, stored, dst.dtype);
  enqueue(a.stream(), "fileRead",
          [file, offset, dst, stored] { files::read_tensor(*file, offset, target_of(dst), dst.numel, stored); });
  return a.undefined();
}

// (file, offset, dst, dtype in the file, elements in a row, elements from row to row)
napi_value file_read_rows(Args& a) {
  FilePtr file = file_on_stream(a, 0);
  int64_t offset = offset_at(a, 1);
  TensorRef dst = tensor_on_stream(a, 2);
  DType stored = a.dtype(3);
  int64_t row = a.integer(4), stride = a.integer(5);
  files::expect_convertible("fileReadRows", *file, stored, dst.dtype);
  if (row < 1 || stride < row || dst.numel % row != 0) {
    fail("ERR_SHAPE", "[fileReadRows] ", file->path(), ": rows of ", row, " elements, ", stride,
         " from row to row, do not fill a tensor of ", dst.numel);
  }
  files::Rows shape{dst.numel / row, row, stride};
  enqueue(a.stream(), "fileReadRows",
          [file, offset, dst, stored, shape] { files::read_rows(*file, offset, target_of(dst), shape, stored); });
  return a.undefined();
}

// (file, offset, src, dtype in the file, most elements that fit there or absent) → elements that will be written
napi_value file_write(Args& a) {
  FilePtr file = file_on_stream(a, 0);
  int64_t offset = offset_at(a, 1);
  TensorRef src = tensor_on_stream(a, 2);
  DType stored = a.dtype(3);
  files::expect_convertible("fileWrite", *file, src.dtype, stored);
  if (!a.missing(4) && src.numel > a.integer(4)) {
    fail("ERR_SHAPE", "[fileWrite] ", file->path(), ": ", src.numel, " elements do not fit into the ", a.integer(4),
         " that are left of the tensor");
  }
  enqueue(a.stream(), "fileWrite",
          [file, offset, src, stored] { files::write_tensor(*file, offset, src.data(), src.dtype, src.numel, stored); });
  return a.from(static_cast<double>(src.numel));
}

// (file, offset, bytes); the bytes may change as soon as the call returns
napi_value file_write_bytes(Args& a) {
  FilePtr file = file_on_stream(a, 0);
  int64_t offset = offset_at(a, 1);
  auto [data, size] = a.bytes(2);
  auto copy = std::make_shared<std::vector<std::byte>>(data, data + size);
  enqueue(a.stream(), "fileWriteBytes", [file, offset, copy] { file->write(offset, copy->data(), copy->size()); });
  return a.undefined();
}

// (file) → event: everything enqueued on the file so far, on whichever stream, is on the disk
napi_value file_sync(Args& a) {
  FilePtr file = table(a).at(a.number(0));
  for (uint32_t mask = file->streams; mask; mask &= mask - 1) {
    Stream* other = a.runtime().stream(std::countr_zero(mask));
    if (other != a.stream()) a.stream()->wait(other->record());
  }
  enqueue(a.stream(), "fileSync", [file] { file->sync(); });
  return a.from(a.state().events.insert(a.stream()->record()));
}

}  // namespace

void register_files(Napi::Object exports) {
  define<file_open>(exports, "fileOpen");
  define<file_create>(exports, "fileCreate");
  define<file_size>(exports, "fileSize");
  define<file_close>(exports, "fileClose");
  define<file_set_threads>(exports, "fileSetThreads");
  define<file_read_bytes>(exports, "fileReadBytes");
  define<file_read>(exports, "fileRead");
  define<file_read_rows>(exports, "fileReadRows");
  define<file_write>(exports, "fileWrite");
  define<file_write_bytes>(exports, "fileWriteBytes");
  define<file_sync>(exports, "fileSync");
}

}  // namespace rz::binding
