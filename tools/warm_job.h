// WarmJob: fetches what a WarmPlan names into the cache, through the fetcher
// and its claims, so that what running mounts fetch is not fetched twice, and
// waits for the hashes of the files that are whole then. What is there already
// is not fetched, so that a job goes on where another was ended.
//
// Bytes count as done once they are published: whatever ends the process then,
// they stay. So many are under way at a time as the fetcher keeps for the disk:
// a disk that is slower than the wire slows the job, and loses nothing.
//
// Thread-safety: Run on one thread; the rest is safe for concurrent use.

#ifndef WEIGHTFS_TOOLS_WARM_JOB_H_
#define WEIGHTFS_TOOLS_WARM_JOB_H_

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "cache/cache_survey.h"
#include "cache/object.h"
#include "cache/object_cache.h"
#include "formats/base/clock.h"
#include "formats/base/mutex.h"
#include "formats/base/result.h"
#include "tools/engine.h"
#include "tools/warm_plan.h"
#include "tools/watched_work.h"

namespace weightfs {

class WarmJob {
 public:
  static constexpr uint64_t kPiece = 2 << 20;  // bytes of one read
  static constexpr size_t kPieces = 24;        // under way

  struct Progress {
    uint64_t total = 0;    // bytes of the plan
    uint64_t before = 0;   // that were cached when the job began
    uint64_t done = 0;     // that are cached now
    bool counted = false;  // what was there
    bool hashing = false;  // all is there; files are being checked
  };

  // All must outlive it. REQUIRES: the engine has a cache.
  WarmJob(Engine& engine, const WarmPlan& plan, CacheSurvey& survey,
          std::chrono::milliseconds patience);
  ~WarmJob();
  WarmJob(const WarmJob&) = delete;
  WarmJob& operator=(const WarmJob&) = delete;

  // Fetches (blocks). kNoSpace: the cache does not hold it all. kCorrupt: the
  // origin's bytes were wrong, twice. kUnavailable: nothing came for
  // `patience`. kCancelled: Stop.
  Result<> Run() EXCLUDES(mutex_);
  // Run ends soon.
  void Stop() EXCLUDES(mutex_);
  Progress progress() const;
  const DiskTime& disk() const { return disk_; }

 private:
  // A file that is being fetched, or hashed.
  struct OpenFile {
    std::shared_ptr<Object> object;
    std::shared_ptr<CacheFile> cached;
    size_t pieces = 0;  // to come, and under way
  };
  struct Slot;

  // What is absent of the plan's runs now; files that are whole and not
  // verified go to hashing_.
  std::vector<FileRun> Survey();
  Result<> Fetch(const std::vector<FileRun>& absent);
  Result<OpenFile*> Open(uint32_t file);
  void Close(uint32_t file);
  void Start(Slot& slot, uint32_t file, const FileRun& piece);
  // A slot that is free; null: the job ended, or lost too much.
  Slot* FreeSlot();
  // Looks what became of pieces whose reads ended. True if any is under way.
  bool Settle();
  void SettleSlot(Slot& slot);
  Result<> AwaitPieces();
  void CancelAll();
  Result<> AwaitHashes(size_t most);
  // Waits a moment, or for a read's end. False if it is to stop.
  bool Pause(std::chrono::milliseconds most) EXCLUDES(mutex_);
  bool stopping() const EXCLUDES(mutex_);

  Engine& engine_;
  const WarmPlan& plan_;
  CacheSurvey& survey_;
  const std::chrono::milliseconds patience_;
  const Snapshot& snapshot_;

  // Run's.
  std::unordered_map<uint32_t, OpenFile> open_;
  struct Hashing {
    uint32_t file;
    std::shared_ptr<CacheFile> cached;
  };
  std::vector<Hashing> hashing_;
  std::vector<std::unique_ptr<Slot>> slots_;
  uint64_t lost_ = 0;                 // bytes that came and were not kept
  std::optional<Error> failed_;       // final
  std::optional<Error> unavailable_;  // of a read that may be tried again
  uint64_t fetched_ = 0;              // as the fetcher counted
  uint64_t not_kept_ = 0;             // so
  Clock::Time moved_{};               // when fetched_ grew

  std::atomic<uint64_t> before_{0};
  std::atomic<uint64_t> done_{0};
  std::atomic<bool> counted_{false};
  std::atomic<bool> in_hashes_{false};
  DiskTime disk_;

  mutable Mutex mutex_;
  CondVar wake_;
  bool stopping_ GUARDED_BY(mutex_) = false;
  uint64_t ended_ GUARDED_BY(mutex_) = 0;  // reads
  uint64_t seen_ GUARDED_BY(mutex_) = 0;   // of those
};

}  // namespace weightfs

#endif  // WEIGHTFS_TOOLS_WARM_JOB_H_
