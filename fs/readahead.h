// Readahead: what to fetch before it is asked for. Streams are followed per
// file, not per handle, since loaders share descriptors and map files that they
// then close. A read of a tensor's first bytes starts the tensor: loaders that
// map files touch the first page of each before they use it. Another first read
// of a stream fetches nothing more; a second one that goes on from it opens a
// window, twice as wide as what was read so far. Inside a tensor the window
// ends with it, until a stream has crossed into a second tensor.
//
// Thread-safety: safe for concurrent use.

#ifndef WEIGHTFS_FS_READAHEAD_H_
#define WEIGHTFS_FS_READAHEAD_H_

#include <algorithm>
#include <array>
#include <cstdint>
#include <list>
#include <unordered_map>

#include "formats/base/mutex.h"

namespace weightfs {

struct ByteRange {
  uint64_t offset = 0;
  uint64_t length = 0;
  bool operator==(const ByteRange&) const = default;
};

class Readahead {
 public:
  static constexpr uint64_t kFirstWindow = 1 << 20;      // bytes
  static constexpr uint64_t kLargestWindow = 256 << 20;  // bytes
  static constexpr uint64_t kTensorWindow = 64 << 20;    // of a first touch
  // Kernel read-ahead arrives in parallel and out of order.
  static constexpr uint64_t kTolerance = 4 << 20;  // bytes
  static constexpr size_t kStreams = 8;            // per file
  static constexpr size_t kFiles = 1024;           // followed at once

  // `largest`: bytes of the largest window.
  explicit Readahead(uint64_t largest = kLargestWindow)
      : largest_(std::max(largest, kFirstWindow)) {}

  // Tells of a read of `file`, and returns what to prefetch (length 0:
  // nothing). `extent` is the tensor (or file) that holds the read's first
  // byte.
  ByteRange OnRead(uint32_t file, uint64_t file_size, ByteRange read,
                   ByteRange extent) EXCLUDES(mutex_);

 private:
  struct Stream {
    uint64_t begin = 0;    // the first byte read
    uint64_t next = 0;     // one past the last byte read
    uint64_t fetched = 0;  // one past the last byte asked for
    uint64_t last_use = 0;
    uint64_t extent_begin = 0;
    bool crossed = false;  // went from one extent into the next
  };
  struct FileStreams {
    std::array<Stream, kStreams> streams;
    std::list<uint32_t>::iterator recency;
  };

  FileStreams& Follow(uint32_t file) REQUIRES(mutex_);

  const uint64_t largest_;
  Mutex mutex_;
  uint64_t tick_ GUARDED_BY(mutex_) = 0;
  std::list<uint32_t> recent_ GUARDED_BY(mutex_);  // most recent first
  std::unordered_map<uint32_t, FileStreams> files_ GUARDED_BY(mutex_);
};

}  // namespace weightfs

#endif  // WEIGHTFS_FS_READAHEAD_H_
