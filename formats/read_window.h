// ReadWindow: reads the head of a ByteSource from front to back by few reads,
// through a buffer that grows to a limit. For headers whose length nothing
// tells; what is skipped is not fetched where it lies past the buffer.
//
// Not thread-safe. Borrows the source.

#ifndef WEIGHTFS_FORMATS_READ_WINDOW_H_
#define WEIGHTFS_FORMATS_READ_WINDOW_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>

#include "formats/base/byte_buffer.h"
#include "formats/base/byte_reader.h"
#include "formats/base/byte_source.h"
#include "formats/base/result.h"

namespace weightfs {

struct ReadWindowLimits {
  uint64_t first = 0;  // bytes of the first read; each next one doubles
  uint64_t most = 0;   // bytes of one read, and of the buffer
  uint64_t end = 0;    // bytes of the source that are read at all
};

class ReadWindow {
 public:
  // `format` names the format in errors.
  ReadWindow(std::string_view format, ByteSource& source,
             ReadWindowLimits limits)
      : format_(format), source_(source), limits_(limits) {}

  // Of the next byte, in the source.
  uint64_t offset() const { return start_ + at_; }
  uint64_t remaining() const { return source_.size() - offset(); }
  // Bytes that the next calls get without a read.
  uint64_t buffered() const { return buffer_.size() - at_; }

  // The next `length` bytes, valid until the next call. kCorrupt if the source
  // ends before, kUnsupported past limits.end. REQUIRES: length is at most
  // limits.most.
  Result<std::span<const std::byte>> Take(std::string_view field,
                                          uint64_t length);
  // Fails as Take, for any length.
  Result<> Skip(std::string_view field, uint64_t length);
  // An integer or float, little-endian.
  template <class T>
  requires std::is_arithmetic_v<T> Result<T> Number(std::string_view field) {
    ASSIGN_OR_RETURN(const auto bytes, Take(field, sizeof(T)));
    return ByteReader(format_, bytes).Read<T>(field);
  }

  // About so many bytes will be taken in a row: the next read is that long, if
  // limits.most allows it.
  void Expect(uint64_t bytes) { expected_ = bytes; }

 private:
  // kCorrupt or kUnsupported if [offset(), offset() + length) cannot be had.
  Result<> Check(std::string_view field, uint64_t length) const;
  // Reads until `length` bytes are buffered. REQUIRES: Check() is fine.
  Result<> Fill(uint64_t length);

  const std::string_view format_;
  ByteSource& source_;
  const ReadWindowLimits limits_;
  uint64_t start_ = 0;  // of the buffer, in the source
  uint64_t at_ = 0;     // of the next byte, in the buffer
  uint64_t last_read_ = 0;
  uint64_t expected_ = 0;
  ByteBuffer buffer_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_READ_WINDOW_H_
