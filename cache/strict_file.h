// StrictObject: a file whose bytes are held back until it is verified; see
// strict_object.h. strict_object.cc takes and serves reads, strict_fetch.cc
// gets the file into the cache and watches the time. Private to the cache.
//
// Lifetime: shared; what waits keeps it. All that may block on the cache's disk
// runs on the threads of Shared::disk.

#ifndef WEIGHTFS_CACHE_STRICT_FILE_H_
#define WEIGHTFS_CACHE_STRICT_FILE_H_

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cache/inline_stays.h"
#include "cache/strict_object.h"
#include "formats/base/clock.h"
#include "formats/base/mutex.h"

namespace weightfs {

struct StrictReads::Shared {
  // A read of resident memory that takes longer waits for the disk.
  static constexpr std::chrono::milliseconds kInlinePatience{50};
  static constexpr size_t kDiskThreads = 4;

  explicit Shared(const Parts& given)
      : parts(given),
        inline_reads(kInlinePatience),
        disk("wfs-strict", kDiskThreads) {}

  const Parts parts;
  std::atomic<ReadId> next_read{1};
  InlineStays inline_reads;
  WorkerPool disk;  // all that looks at the cache

  Mutex mutex;
  bool stopped GUARDED_BY(mutex) = false;
  std::vector<std::weak_ptr<class StrictObject>> objects GUARDED_BY(mutex);
  size_t prune_at GUARDED_BY(mutex) = 64;
};

// What waits is in waits_; whoever takes a read out completes it.
class StrictObject final : public Object,
                           public std::enable_shared_from_this<StrictObject> {
 public:
  StrictObject(std::shared_ptr<StrictReads::Shared> shared,
               std::shared_ptr<Object> object,
               std::shared_ptr<CacheFile> cached, StrictReads::Reopen reopen)
      : shared_(std::move(shared)),
        inner_(std::move(object)),
        cached_(std::move(cached)),
        reopen_(std::move(reopen)) {}

  const FileInfo& info() const override { return inner_->info(); }
  bool TryRead(uint64_t offset, std::span<std::byte> out) override;
  std::optional<LentBytes> TryLend(uint64_t offset, uint64_t length) override;
  ReadId StartRead(uint64_t offset, std::span<std::byte> out,
                   const ReadOptions& options, Done done) override
      EXCLUDES(mutex_);
  void CancelRead(ReadId id) override EXCLUDES(mutex_);
  Clock::Time Until(ReadId id, Clock::Time deadline) const override
      EXCLUDES(mutex_);
  std::string WaitsFor(ReadId id) const override EXCLUDES(mutex_);
  uint64_t Prefetch(uint64_t offset, uint64_t length) override {
    return inner_->Prefetch(offset, length);
  }
  double CachedFraction() const override { return inner_->CachedFraction(); }

  // Ends all reads with kCancelled, and later ones.
  void Stop() EXCLUDES(mutex_);

 private:
  using Duration = Clock::Time::duration;
  // Reads that come so soon after a failure fail alike: the kernel repeats
  // them.
  static constexpr std::chrono::milliseconds kFailureMemory{1'000};

  // kWaiting → kServing, and back while the file is not verified; kWaiting →
  // kForwarded, to the file opened anew.
  enum class Phase : uint8_t { kWaiting, kServing, kForwarded };
  struct Wait {
    std::shared_ptr<StrictObject> object;  // as long as the read waits
    uint64_t offset = 0;
    std::span<std::byte> out;
    Duration patience{};
    Done done;
    Phase phase = Phase::kWaiting;
    bool cancelled = false;           // kForwarded, before its id is known
    std::shared_ptr<Object> forward;  // kForwarded
    ReadId forward_id = 0;
  };
  using WaitPtr = std::shared_ptr<Wait>;

  WaitPtr Take(ReadId id) EXCLUDES(mutex_);
  void Complete(const WaitPtr& wait, Result<> result);
  // Completes all that wait, and those who come soon.
  void FailAll(const Error& error) EXCLUDES(mutex_);
  // When patience is counted from.
  Clock::Time Base() const REQUIRES(mutex_) {
    return std::max(session_start_, last_progress_);
  }

  // On the timers' thread.
  void Tick() EXCLUDES(mutex_);
  void ArmTick();
  Error Overdue(const Wait& wait) const REQUIRES(mutex_);

  // On a disk thread.
  void Serve(ReadId id) EXCLUDES(mutex_);
  // OK only if the file was verified before `read` and after it, with nothing
  // lost in the range between. kStale: it is not. The range is pinned, `read`
  // may take the pin. `read`: Result<>(SlabPin&).
  template <class Read>
  Result<> WhileVerified(uint64_t offset, uint64_t length, Read read);
  void Look() EXCLUDES(mutex_);
  void LookOnce() EXCLUDES(mutex_);
  void ServeAll() EXCLUDES(mutex_);
  void Forward() EXCLUDES(mutex_);
  void Fetch(uint64_t granule) EXCLUDES(mutex_);
  void FetchDone(const Result<>& result) EXCLUDES(mutex_);

  const std::shared_ptr<StrictReads::Shared> shared_;
  const std::shared_ptr<Object> inner_;
  const std::shared_ptr<CacheFile> cached_;
  const StrictReads::Reopen reopen_;

  mutable Mutex mutex_;  // nothing is called while it is held
  bool stopped_ GUARDED_BY(mutex_) = false;
  std::map<ReadId, WaitPtr> waits_ GUARDED_BY(mutex_);
  bool ticking_ GUARDED_BY(mutex_) = false;
  bool looking_ GUARDED_BY(mutex_) = false;
  // A session lasts as long as somebody waits.
  Clock::Time session_start_ GUARDED_BY(mutex_);
  Clock::Time session_end_ GUARDED_BY(mutex_);
  Clock::Time last_progress_ GUARDED_BY(mutex_);
  uint64_t most_ GUARDED_BY(mutex_) = 0;  // bytes there and hashed, ever
  uint64_t present_ GUARDED_BY(mutex_) = 0;
  std::optional<Error> last_error_ GUARDED_BY(mutex_);
  std::optional<Error> failure_ GUARDED_BY(mutex_);  // of all reads
  Clock::Time failed_at_ GUARDED_BY(mutex_);
  // The one granule that is asked for as a reader asks, so that errors of the
  // origin are told; others are prefetched.
  bool fetching_ GUARDED_BY(mutex_) = false;
  ReadId fetch_id_ GUARDED_BY(mutex_) = 0;
  std::optional<uint64_t> fetched_ GUARDED_BY(mutex_);  // and not seen yet
  Clock::Time fetched_at_ GUARDED_BY(mutex_);
  int not_kept_ GUARDED_BY(mutex_) = 0;
  uint64_t prefetched_from_ GUARDED_BY(mutex_) = UINT64_MAX;
  Clock::Time prefetched_at_ GUARDED_BY(mutex_);
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_STRICT_FILE_H_
