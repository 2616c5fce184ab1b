// ByteSource: immutable bytes of known size that can be read at any offset.
// What parsers read from: a file, a cached remote file, memory.
//
// Thread-safety: implementations are safe for concurrent use.

#ifndef WEIGHTFS_FORMATS_BASE_BYTE_SOURCE_H_
#define WEIGHTFS_FORMATS_BASE_BYTE_SOURCE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "formats/base/result.h"

namespace weightfs {

class ByteSource {
 public:
  virtual ~ByteSource() = default;

  // Bytes in the source.
  virtual uint64_t size() const = 0;
  // For messages: the file's path in its repository.
  virtual const std::string& name() const = 0;
  // Fills all of `out` from `offset`; may block. A range past the end is
  // kInvalid; `out` is unspecified after an error.
  virtual Result<> ReadAt(uint64_t offset, std::span<std::byte> out) = 0;
};

// Bytes in memory.
class MemorySource final : public ByteSource {
 public:
  MemorySource(std::string name, std::vector<std::byte> bytes)
      : name_(std::move(name)), bytes_(std::move(bytes)) {}

  uint64_t size() const override { return bytes_.size(); }
  const std::string& name() const override { return name_; }
  Result<> ReadAt(uint64_t offset, std::span<std::byte> out) override;

 private:
  const std::string name_;
  const std::vector<std::byte> bytes_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_BASE_BYTE_SOURCE_H_
