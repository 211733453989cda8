// An open file: ranges of bytes read and written at offsets, never mapped. A mapped file that is cut short kills the
// process with SIGBUS; a short pread is an error with a name. The descriptor closes with the last reference, so a file
// that was replaced or deleted stays readable for whoever still has reads queued. Large ranges go in pieces, each of which is
// progress (core/progress.h): a rank with a slow disk is not taken for dead.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace rz::files {

class File {
 public:
  // Regular files only. Error: ERR_FILE_OPEN naming the path and the reason.
  static std::shared_ptr<File> open(const std::string& path);
  // Creates or empties the file. With `bytes` > 0 the space is reserved first, so that a full disk is an error here
  // (ERR_FILE_WRITE) and not after hours of writing; file systems that cannot reserve are let pass.
  static std::shared_ptr<File> create(const std::string& path, int64_t bytes = 0);
  ~File();
  File(const File&) = delete;

  const std::string& path() const { return path_; }
  int64_t size() const;

  // Fills `into` completely. Errors: ERR_FILE_TRUNCATED (the file ends first), ERR_FILE_READ.
  void read(int64_t offset, void* into, size_t bytes) const;
  // Error: ERR_FILE_WRITE, naming path, range and the system's reason.
  void write(int64_t offset, const void* from, size_t bytes);
  // Waits until all of it is on the disk. Error: ERR_FILE_WRITE.
  void sync();

  // Streams that have work on the file queued, by index: `fileSync` orders itself behind all of them.
  uint32_t streams = 0;

 private:
  File(int descriptor, std::string path) : descriptor_(descriptor), path_(std::move(path)) {}
  int descriptor_;
  std::string path_;
};

}  // namespace rz::files
