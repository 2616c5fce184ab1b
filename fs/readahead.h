// Readahead: what to fetch before it is asked for. Streams are followed per
// file, not per handle, since loaders share descriptors and map files that they
// then close. A read of a tensor's first bytes starts the tensor: loaders that
// map files touch the first page of each before they use it. Another first read
// of a stream fetches nothing more; a second one that goes on from it opens a
// window, twice as wide as what was read so far; beyond the first MiB, up to 16
// MiB, four times. Inside a tensor the window ends with it, until a stream has
// crossed from one into the next twice; after once, or from the header, a
// quarter of what was read so far is fetched of what follows. Streams that are
// read side by side share the largest window.
//
// Thread-safety: safe for concurrent use.

#ifndef WEIGHTFS_FS_READAHEAD_H_
#define WEIGHTFS_FS_READAHEAD_H_

#include <algorithm>
#include <cstdint>
#include <list>
#include <unordered_map>
#include <vector>

#include "formats/base/mutex.h"

namespace weightfs {

struct ByteRange {
  uint64_t offset = 0;
  uint64_t length = 0;
  bool operator==(const ByteRange&) const = default;
};

class Readahead {
 public:
  static constexpr uint64_t kFirstWindow = 1 << 20;  // bytes
  // Beyond a tensor's end, at least, at once.
  static constexpr uint64_t kBeyond = 4 << 20;           // bytes
  static constexpr uint64_t kSteepWindow = 16 << 20;     // bytes
  static constexpr uint64_t kLargestWindow = 256 << 20;  // bytes
  static constexpr uint64_t kTensorWindow = 64 << 20;    // of a first touch
  // Kernel read-ahead arrives in parallel and out of order.
  static constexpr uint64_t kTolerance = 4 << 20;  // bytes
  // How far behind the others of its stream a thread may be.
  static constexpr uint64_t kStraggling = 32 << 20;  // bytes
  static constexpr size_t kStreams = 64;             // per file
  // After so many the order of the file is followed. One may be by chance, or
  // what the kernel read beyond a tensor.
  static constexpr size_t kCrossings = 2;
  static constexpr size_t kFiles = 1024;  // followed at once
  static constexpr uint64_t kTurn = 256;  // reads

  // `largest`: bytes of the largest window.
  explicit Readahead(uint64_t largest = kLargestWindow)
      : largest_(std::max(largest, kFirstWindow)) {}

  // What a read lies in: tensors, or the file.
  struct Extents {
    Extents(ByteRange all) : first(all), last(all.offset) {}  // NOLINT
    Extents(ByteRange first_byte_in, uint64_t last_byte_in, bool is_alone)
        : first(first_byte_in), last(last_byte_in), alone(is_alone) {}

    // Whether the first byte of `first` is in the read, and a tensor's.
    bool FirstByteIsIn(ByteRange read) const;

    ByteRange first;     // that which holds its first byte
    uint64_t last;       // where that begins which holds its last byte
    bool alone = false;  // it is read through a file that shows nothing else
  };

  // Tells of a read of `file`, and returns what to prefetch (length 0:
  // nothing).
  ByteRange OnRead(uint32_t file, uint64_t file_size, ByteRange read,
                   const Extents& in) EXCLUDES(mutex_);
  // Only `taken` bytes of what OnRead returned could be prefetched: the rest is
  // returned again when the stream has gone on.
  void Refused(uint32_t file, ByteRange ahead, uint64_t taken) EXCLUDES(mutex_);

 private:
  struct Stream {
    uint64_t begin = 0;    // the first byte read
    uint64_t next = 0;     // one past the last byte read
    uint64_t fetched = 0;  // one past the last byte asked for
    uint64_t last_use = 0;
    uint64_t pause = 0;    // nothing is asked for before it is read so far
    uint64_t turn = 0;     // in which it was read last
    uint64_t extent = 0;   // where that begins which it is in
    uint64_t length = 0;   // of all its reads
    size_t crossings = 0;  // from one extent into the next

    bool IsNear(ByteRange read, const Extents& in) const;
    bool Spans(ByteRange read, const Extents& in) const;
  };
  struct FileStreams {
    std::vector<Stream> streams;  // kStreams at most
    std::list<uint32_t>::iterator recency;
  };

  FileStreams& Follow(uint32_t file) REQUIRES(mutex_);
  ByteRange Begin(Stream& stream, ByteRange read, const Extents& in)
      REQUIRES(mutex_);
  // All streams that are being read share the largest window.
  uint64_t Share(Stream& stream) REQUIRES(mutex_);
  ByteRange GoOn(Stream& stream, uint64_t file_size, ByteRange read,
                 const Extents& in) REQUIRES(mutex_);

  const uint64_t largest_;
  Mutex mutex_;
  uint64_t tick_ GUARDED_BY(mutex_) = 0;
  // A turn is kTurn reads; streams that were read in this one, and in the last.
  uint64_t busy_ GUARDED_BY(mutex_) = 0;
  uint64_t busy_before_ GUARDED_BY(mutex_) = 0;
  uint64_t turn_ GUARDED_BY(mutex_) = 1;
  std::list<uint32_t> recent_ GUARDED_BY(mutex_);  // most recent first
  std::unordered_map<uint32_t, FileStreams> files_ GUARDED_BY(mutex_);
};

}  // namespace weightfs

#endif  // WEIGHTFS_FS_READAHEAD_H_
