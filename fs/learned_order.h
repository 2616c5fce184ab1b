// LearnedOrder: in which order readers first touched the weights of a
// repository, to be kept with its commit and followed at the next mount that
// finds the cache cold.
//
// Recording. What is recorded are extents: tensors, or blocks of a file that
// has no index. Each counts when its first byte is read, whatever is read
// behind it and however long that takes; so the record follows from what was
// touched in which order, and from nothing else.
//
// Following. The kept order is one long stream of bytes. Two extents that are
// touched one after the other, as they follow each other there, start it; then
// what comes next in the stream is asked for ahead of the reader, further with
// each extent that is as expected. Extents elsewhere end it, and it can start
// anew. So one tensor that is read by itself fetches nothing more.
//
// Thread-safety: safe for concurrent use.

#ifndef WEIGHTFS_FS_LEARNED_ORDER_H_
#define WEIGHTFS_FS_LEARNED_ORDER_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "cache/snapshot_store.h"
#include "formats/base/mutex.h"
#include "fs/readahead.h"

namespace weightfs {

class LearnedOrder {
 public:
  // Smaller files come with one request anyway.
  static constexpr uint64_t kLeastFile = 1 << 20;  // bytes
  // An extent of a file that has no index.
  static constexpr uint64_t kBlock = 16 << 20;          // bytes
  static constexpr uint64_t kFirstWindow = 4 << 20;     // bytes ahead
  static constexpr uint64_t kLargestWindow = 64 << 20;  // bytes ahead
  // An extent is as expected up to so many of its kind away.
  static constexpr uint64_t kSlack = 16;
  static constexpr uint64_t kLeastSlack = 1 << 20;  // bytes of one of them
  static constexpr int kMisses = 4;                 // one after the other
  static constexpr size_t kMaxTouches = 1 << 16;    // remembered

  // Whose reads it is told of: `files` of a snapshot. None: it does nothing.
  explicit LearnedOrder(const std::vector<FileInfo>& files);

  // The order that was kept (SnapshotStore::LoadOrder). Once.
  void Learn(const std::vector<FileRun>& order) EXCLUDES(mutex_);

  // Tells of a read, and returns what to prefetch, in order. `extent`: what
  // holds the read's first byte; the whole file if nobody knows (yet); another
  // place if it is in no extent (a header). Constant time for what was read
  // before, a look into a few small tables otherwise.
  std::vector<FileRun> OnRead(uint32_t file, ByteRange read, ByteRange extent)
      EXCLUDES(mutex_);

  // Grows whenever there is something new to keep.
  uint64_t touches() const { return touches_count_; }
  // The order to keep: as this mount's readers touched things and, behind it,
  // what else the kept one has. A mount that touched less than half of that
  // changes nothing. `extent_at` as OnRead's extents. Empty: nothing to keep.
  using ExtentAt = std::function<ByteRange(uint32_t file, uint64_t offset)>;
  std::vector<FileRun> Collect(const ExtentAt& extent_at) const
      EXCLUDES(mutex_);

 private:
  struct Touch {
    uint32_t file;
    uint64_t offset;  // of the extent; if that is not known, of the read
    uint64_t length;  // 0: not known
  };
  // A run of the kept order.
  struct Placed {
    uint64_t begin;  // in its file
    uint64_t end;
    uint64_t at;  // of `begin`, in the stream
  };

  // True for the first read of the granule.
  bool IsFirst(uint32_t file, uint64_t offset);
  uint64_t SizeOf(uint32_t file) const { return sizes_[file]; }
  // The block of a file without an index.
  ByteRange BlockAt(uint32_t file, uint64_t offset) const;
  // True if nobody touched the extent before.
  bool Record(uint32_t file, uint64_t offset, ByteRange extent, bool known)
      REQUIRES(mutex_);
  std::vector<FileRun> Follow(uint32_t file, ByteRange read, ByteRange extent,
                              bool is_new) REQUIRES(mutex_);
  // Whether the stream goes on as an extent of `length` bytes at `at` says.
  bool GoesOn(uint64_t at, uint64_t length) const REQUIRES(mutex_);
  std::optional<uint64_t> PlaceOf(uint32_t file, uint64_t offset) const
      REQUIRES(mutex_);
  std::vector<FileRun> Cut(uint64_t from, uint64_t to) const REQUIRES(mutex_);

  std::vector<uint64_t> sizes_;      // of the files
  std::vector<uint64_t> first_bit_;  // of each file; kNoBits: not followed
  std::unique_ptr<std::atomic<uint64_t>[]> bits_;  // of granules, read before
  std::atomic<uint64_t> touches_count_{0};

  mutable Mutex mutex_;
  std::vector<Touch> touches_ GUARDED_BY(mutex_);
  // What is in touches_: file, place, length.
  std::set<std::tuple<uint32_t, uint64_t, uint64_t>> touched_
      GUARDED_BY(mutex_);

  std::vector<FileRun> kept_ GUARDED_BY(mutex_);
  std::vector<uint64_t> starts_ GUARDED_BY(mutex_);  // of kept_, in the stream
  uint64_t total_ GUARDED_BY(mutex_) = 0;            // bytes of the stream
  std::unordered_map<uint32_t, std::vector<Placed>> placed_ GUARDED_BY(mutex_);
  bool following_ GUARDED_BY(mutex_) = false;
  std::optional<uint64_t> last_end_ GUARDED_BY(mutex_);  // of the last extent
  // While following: how far the reader came, and what was asked for.
  uint64_t frontier_ GUARDED_BY(mutex_) = 0;
  uint64_t asked_ GUARDED_BY(mutex_) = 0;
  uint64_t window_ GUARDED_BY(mutex_) = 0;
  int misses_ GUARDED_BY(mutex_) = 0;
};

}  // namespace weightfs

#endif  // WEIGHTFS_FS_LEARNED_ORDER_H_
