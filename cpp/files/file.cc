#include "files/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/error.h"
#include "core/progress.h"

namespace rz::files {
namespace {

constexpr size_t kPiece = size_t{4} << 20;         // read or written by one call
constexpr int64_t kSyncPiece = int64_t{16} << 20;  // waited for by one call

std::string reason(int error) { return std::strerror(error); }  // NOLINT: glibc's is thread-safe for known errors

}  // namespace

std::shared_ptr<File> File::open(const std::string& path) {
  int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) fail("ERR_FILE_OPEN", "cannot open ", path, ": ", reason(errno));
  std::shared_ptr<File> file(new File(descriptor, path));
  struct stat info;
  if (fstat(descriptor, &info) != 0) fail("ERR_FILE_OPEN", "cannot open ", path, ": ", reason(errno));
  if (!S_ISREG(info.st_mode)) fail("ERR_FILE_OPEN", "cannot open ", path, ": not a regular file");
  posix_fadvise(descriptor, 0, 0, POSIX_FADV_SEQUENTIAL);  // a longer read-ahead; advice only
  return file;
}

std::shared_ptr<File> File::create(const std::string& path, int64_t bytes) {
  int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor < 0) fail("ERR_FILE_WRITE", "cannot create ", path, ": ", reason(errno));
  std::shared_ptr<File> file(new File(descriptor, path));
  if (bytes > 0 && fallocate(descriptor, 0, 0, bytes) != 0) {
    int error = errno;
    if (error == ENOSPC || error == EFBIG || error == EDQUOT) {
      ::unlink(path.c_str());
      fail("ERR_FILE_WRITE", "cannot reserve ", bytes, " bytes for ", path, ": ", reason(error));
    }
  }
  return file;
}

File::~File() { ::close(descriptor_); }

int64_t File::size() const {
  struct stat info;
  if (fstat(descriptor_, &info) != 0) fail("ERR_FILE_READ", "cannot read the size of ", path_, ": ", reason(errno));
  return info.st_size;
}

void File::read(int64_t offset, void* into, size_t bytes) const {
  size_t done = 0;
  while (done < bytes) {
    size_t piece = std::min(bytes - done, kPiece);
    ssize_t got = pread(descriptor_, static_cast<std::byte*>(into) + done, piece, offset + static_cast<int64_t>(done));
    if (got > 0) {
      done += static_cast<size_t>(got);
      progress::add_bytes(static_cast<uint64_t>(got));
    } else if (got == 0) {
      fail("ERR_FILE_TRUNCATED", path_, " is cut short: ", bytes, " bytes were wanted at offset ", offset, ", got ", done,
           " (the file has ", size(), " bytes)");
    } else if (errno != EINTR) {
      fail("ERR_FILE_READ", "cannot read ", bytes, " bytes at offset ", offset, " of ", path_, ": ", reason(errno));
    }
  }
}

void File::write(int64_t offset, const void* from, size_t bytes) {
  size_t done = 0;
  while (done < bytes) {
    size_t piece = std::min(bytes - done, kPiece);
    ssize_t put =
        pwrite(descriptor_, static_cast<const std::byte*>(from) + done, piece, offset + static_cast<int64_t>(done));
    if (put >= 0) {
      done += static_cast<size_t>(put);
      progress::add_bytes(static_cast<uint64_t>(put));
    } else if (errno != EINTR) {
      fail("ERR_FILE_WRITE", "cannot write ", bytes, " bytes at offset ", offset, " of ", path_, ": ", reason(errno));
    }
  }
}

void File::sync() {
  // Piece by piece, the next under way while one is waited for; fsync, which cannot say how far it is, then has little
  // left. An error is told to one call only, so it counts here too. File systems that cannot do this are let pass.
  auto flush = [&](int64_t offset, unsigned flags) {
    int result = sync_file_range(descriptor_, offset, kSyncPiece, flags);
    if (result != 0 && errno != ENOSYS && errno != EINVAL && errno != ESPIPE && errno != EOPNOTSUPP)
      fail("ERR_FILE_WRITE", "cannot write ", path_, " to the disk: ", reason(errno));
  };
  for (int64_t offset = 0, end = size(); offset < end; offset += kSyncPiece) {
    flush(offset + kSyncPiece, SYNC_FILE_RANGE_WRITE);
    flush(offset, SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
    progress::tick();
  }
  if (fsync(descriptor_) != 0) fail("ERR_FILE_WRITE", "cannot write ", path_, " to the disk: ", reason(errno));
}

}  // namespace rz::files
