// ReadOp: one started read of an object: where its bytes go, which of them are
// there, and whom to tell at the end. And FetchFile, the file that it reads.
//
// Thread-safety: ReadOp's methods are safe for concurrent use. Fields marked
// "FetchCore" are guarded by FetchCore's mutex. A ReadOp's own mutex is a leaf:
// nothing else is locked and nothing is called while it is held, and it is
// never taken with FetchCore's held.
//
// `out` is the caller's memory, valid until `done` starts. Bytes are copied
// into it only under the mutex and only before the read ended; `done` runs
// after it ended. So nothing writes to `out` once `done` may have run, whoever
// ends the read.

#ifndef WEIGHTFS_CACHE_READ_OP_H_
#define WEIGHTFS_CACHE_READ_OP_H_

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cache/object.h"
#include "cache/object_cache.h"
#include "cache/origin.h"
#include "cache/recent_failures.h"
#include "formats/base/byte_buffer.h"
#include "formats/base/clock.h"
#include "formats/base/mutex.h"
#include "formats/base/result.h"
#include "formats/base/timer_queue.h"

namespace weightfs {

struct ClaimWait;
struct FetchFile;
struct Flight;
class ReadOp;

// One granule's bytes in memory, immutable once complete.
struct GranuleBytes {
  explicit GranuleBytes(size_t bytes) : buffer(bytes) {}
  std::span<const std::byte> view() const { return buffer.span(); }
  size_t size() const { return buffer.size(); }

  const ByteBuffer buffer;
};

// A granule that is wanted, in flight, or on its way to the disk.
//
//   kQueued -> kFlying -> kWriting -> (gone)
//      ^         |
//      |         v
//      +--- kElsewhere
//
// and from each state to gone: nobody wants it any more, it failed, the cache
// cannot keep it, or another process put it there. kElsewhere: another process
// fetches it. All but kWriting may have waiters, kElsewhere always has some.
struct Granule {
  enum class State : uint8_t { kQueued, kFlying, kElsewhere, kWriting };
  State state = State::kQueued;
  bool demand = false;    // kQueued: in the demand queue, else in the other
  bool prefetch = false;  // Prefetch() asked for it
  bool counted = false;   // in FetchCore::prefetch_bytes_
  bool anyway = false;    // to be fetched whatever the cache or others say
  uint64_t read = 0;      // bytes of it that readers took
  int64_t ticket = 0;     // kQueued: its key in the queue
  std::shared_ptr<Flight> flight;             // kFlying
  std::shared_ptr<ClaimWait> elsewhere;       // kElsewhere
  std::shared_ptr<const GranuleBytes> bytes;  // kWriting
  std::vector<std::shared_ptr<ReadOp>> waiters;
};

// A granule in UnreadBytes.
struct UnreadGranule {
  std::weak_ptr<FetchFile> file;
  uint64_t granule;
  std::shared_ptr<const GranuleBytes> bytes;
  uint64_t read;  // bytes of it that readers took
  Clock::Time since;
};

// A file open for reading, shared by the objects that read one CacheFile.
struct FetchFile {
  FetchFile(FileInfo file_info, std::shared_ptr<CacheFile> cache_file,
            std::chrono::milliseconds failure_memory)
      : info(std::move(file_info)),
        cache(std::move(cache_file)),
        failures(failure_memory) {}

  uint64_t GranuleEnd(uint64_t granule) const {
    return std::min((granule + 1) * kGranuleSize, info.size);
  }
  uint64_t GranuleCount() const {
    return (info.size + kGranuleSize - 1) / kGranuleSize;
  }

  const FileInfo info;
  const std::shared_ptr<CacheFile> cache;  // null: nothing is kept
  // Grows when a granule leaves `granules` for the disk, so that a reader can
  // tell that its look at Has() may be old.
  std::atomic<uint64_t> landed{0};
  std::map<uint64_t, Granule> granules;  // FetchCore
  std::unordered_map<uint64_t, std::list<UnreadGranule>::iterator>
      unread;                            // FetchCore: UnreadBytes
  RecentFailures failures;               // FetchCore
  std::vector<GranuleRun> stuck_claims;  // of others. FetchClaims
};

class ReadOp {
 public:
  ReadOp(ReadId id, std::shared_ptr<FetchFile> file, uint64_t offset,
         std::span<std::byte> out, Clock::Time deadline, Object::Done done);

  ReadId id() const { return id_; }
  const std::shared_ptr<FetchFile>& file() const { return file_; }
  uint64_t offset() const { return offset_; }
  uint64_t end() const { return offset_ + length_; }
  Clock::Time started() const { return started_; }
  Clock::Time deadline() const { return deadline_; }
  // From its start to its deadline; max() without one.
  Clock::Time::duration patience() const {
    return deadline_ == Clock::Time::max() ? Clock::Time::duration::max()
                                           : deadline_ - started_;
  }
  // REQUIRES: the read is not empty.
  uint64_t BytesOf(uint64_t granule) const {
    return std::min(end(), file_->GranuleEnd(granule)) -
           std::max(offset_, granule * kGranuleSize);
  }
  uint64_t first_granule() const { return offset_ / kGranuleSize; }
  uint64_t last_granule() const { return (end() - 1) / kGranuleSize; }

  // Takes what the read wants of `granule` from `bytes`, which start at
  // `bytes_offset` of the file and cover that. Nothing happens if the granule
  // was taken before or the read ended. True if this ended the read, OK.
  bool Fill(uint64_t granule, uint64_t bytes_offset,
            std::span<const std::byte> bytes) EXCLUDES(mutex_);
  // For reads without granules: takes `bytes`, which lie in the read and were
  // not given before. True if this ended the read, OK.
  bool FillRaw(uint64_t bytes_offset, std::span<const std::byte> bytes)
      EXCLUDES(mutex_);
  // True if this call ended the read.
  bool End(Result<> result) EXCLUDES(mutex_);

  bool ended() const EXCLUDES(mutex_);
  bool Has(uint64_t granule) const EXCLUDES(mutex_);

  // Tells the caller. To be called once, without locks, after the read ended.
  void RunDone() EXCLUDES(mutex_);

  std::optional<TimerQueue::Id> deadline_timer;  // FetchCore
  // What others waited for these bytes just before, in vain. FetchCore
  Clock::Time::duration waited_before{};
  size_t waits = 0;                              // FetchCore: granules' waiters
  std::vector<std::shared_ptr<Flight>> flights;  // FetchCore: without granules

 private:
  bool CopyIn(uint64_t begin, std::span<const std::byte> bytes)
      REQUIRES(mutex_);

  const ReadId id_;
  const std::shared_ptr<FetchFile> file_;
  const uint64_t offset_;
  const uint64_t length_;
  const Clock::Time started_;
  const Clock::Time deadline_;
  std::byte* const out_;

  mutable Mutex mutex_;
  uint64_t missing_ GUARDED_BY(mutex_);
  std::vector<bool> have_ GUARDED_BY(mutex_);  // by granule - first_granule()
  bool ended_ GUARDED_BY(mutex_) = false;
  Result<> result_ GUARDED_BY(mutex_);
  Object::Done done_ GUARDED_BY(mutex_);
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_READ_OP_H_
