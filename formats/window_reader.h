// WindowReader: what was read of a source, kept. Each read of a source may cost
// a network round trip; parsers that look here and there in a file read whole
// windows, and what lies in one of them costs nothing more.
//
// Not thread-safe. Borrows the source.

#ifndef WEIGHTFS_FORMATS_WINDOW_READER_H_
#define WEIGHTFS_FORMATS_WINDOW_READER_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "formats/base/byte_source.h"
#include "formats/base/result.h"

namespace weightfs {

class WindowReader {
 public:
  explicit WindowReader(ByteSource& source) : source_(source) {}

  ByteSource& source() const { return source_; }
  uint64_t size() const { return source_.size(); }

  // These bytes; they live as long as the reader. Reads them and keeps them,
  // unless they lie in one window. REQUIRES: the caller bounds `length`.
  Result<std::span<const std::byte>> Read(uint64_t offset, uint64_t length);
  // The same without a read: nothing if no window holds them all.
  std::optional<std::span<const std::byte>> Known(uint64_t offset,
                                                  uint64_t length) const;

 private:
  struct Window {
    uint64_t offset = 0;
    std::vector<std::byte> bytes;
  };

  ByteSource& source_;
  std::deque<Window> windows_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_WINDOW_READER_H_
