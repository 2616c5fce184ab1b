// What a program of the benchmark reads: byte ranges of files, each with the
// range of another file that holds the same bytes; and how it is checked.
//
// A job comes as text, one range a line, five fields with tabs between them:
// the file, offset, length, the source's file, offset.
//
// Thread-safety: a Job is made by one thread; after that Check may be called
// from any number at a time.

#ifndef WEIGHTFS_TESTS_BENCH_JOB_H_
#define WEIGHTFS_TESTS_BENCH_JOB_H_

#include <cstddef>
#include <cstdint>
#include <istream>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "formats/base/result.h"

namespace weightfs {

// A whole file in memory, read-only and shared; unmapped at the end.
class MappedFile {
 public:
  static Result<MappedFile> Open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  MappedFile() = default;

  std::span<const std::byte> bytes_;
};

// Memory of its own, touched, so that no page fault is measured.
class TouchedMemory {
 public:
  static Result<TouchedMemory> Make(size_t size);
  TouchedMemory(TouchedMemory&& other) noexcept;
  TouchedMemory& operator=(TouchedMemory&& other) = delete;
  TouchedMemory(const TouchedMemory&) = delete;
  TouchedMemory& operator=(const TouchedMemory&) = delete;
  ~TouchedMemory();

  std::span<std::byte> bytes() const { return bytes_; }

 private:
  TouchedMemory() = default;

  std::span<std::byte> bytes_;
};

class Job {
 public:
  struct Item {
    std::string path;
    uint64_t offset = 0;
    uint64_t length = 0;
    std::string source;
    uint64_t source_offset = 0;
  };

  // Fails on a line that is none, and on a source that lacks its range.
  static Result<Job> Parse(std::istream& text);

  const std::vector<Item>& items() const { return items_; }
  uint64_t bytes() const { return bytes_; }
  // How many of `read`, which were read `at` bytes into the item, differ from
  // the source. REQUIRES: they are in the item.
  uint64_t CountWrong(const Item& item, uint64_t at,
                      std::span<const std::byte> read) const;

 private:
  std::vector<Item> items_;
  uint64_t bytes_ = 0;
  std::map<std::string, MappedFile> sources_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_BENCH_JOB_H_
