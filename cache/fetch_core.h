// FetchCore: what is behind Fetcher and its objects: the table of granules that
// are wanted, flying or being written, the two queues, the running flights, and
// the reads that wait for them.
//
// Thread-safety: safe for concurrent use.
//
// Locks. mutex_ is taken first or alone; under it only the leaves of the
// TimerQueue and FetchClaims. Methods that change state decide under mutex_,
// and note in an Effects what is to be done; Apply() does it without a lock:
// none is held across I/O, a callback, or a copy into readers' memory.
//
// Lifetime. Shared: objects, attempts and pool tasks keep it. After Stop() no
// method touches the origin, the timers or the pool.

#ifndef WEIGHTFS_CACHE_FETCH_CORE_H_
#define WEIGHTFS_CACHE_FETCH_CORE_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <span>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "cache/fetch_claims.h"
#include "cache/fetcher.h"
#include "cache/flight.h"
#include "cache/inline_stays.h"
#include "cache/patient_calls.h"
#include "cache/read_op.h"
#include "cache/traffic.h"
#include "cache/unread_bytes.h"
#include "formats/base/mutex.h"

namespace weightfs {

class FetchCore : public std::enable_shared_from_this<FetchCore> {
 public:
  FetchCore(Origin& origin, TimerQueue& timers, WorkerPool& pool,
            const FetcherOptions& options);

  std::shared_ptr<FetchFile> OpenFile(const FileInfo&,
                                      std::shared_ptr<CacheFile>)
      EXCLUDES(mutex_);
  ReadId StartRead(const std::shared_ptr<FetchFile>&, uint64_t offset,
                   std::span<std::byte> out, const ReadOptions&, Object::Done)
      EXCLUDES(mutex_);
  void CancelRead(const FetchFile& file, ReadId id) EXCLUDES(mutex_);
  uint64_t Prefetch(const std::shared_ptr<FetchFile>& file, uint64_t offset,
                    uint64_t length) EXCLUDES(mutex_);
  bool TryRead(FetchFile&, uint64_t offset, std::span<std::byte> out);
  std::optional<LentBytes> TryLend(FetchFile&, uint64_t at, uint64_t length);
  double CachedFraction(const std::shared_ptr<FetchFile>& file);
  std::string WaitsFor(ReadId) const EXCLUDES(mutex_);  // cache or origin
  void Stop() EXCLUDES(mutex_);
  FetcherStats stats() const EXCLUDES(mutex_);

 private:
  class Attempt;
  struct DiskRead;
  struct DiskWrite;
  struct Effects;
  struct Sharing;  // what other processes fetch: fetch_sharing.cc
  class Activity;  // a thread is inside; Stop() waits for it
  // kStopping: no new reads, fetches. kClosed: no new Activity either.
  enum class Phase : uint8_t { kRunning, kStopping, kClosed, kStopped };
  using Queue = std::map<int64_t, QueueItem>;
  using FilePtr = std::shared_ptr<FetchFile>;
  using FlightPtr = std::shared_ptr<Flight>;
  using OpPtr = std::shared_ptr<ReadOp>;
  using BytesPtr = std::shared_ptr<const GranuleBytes>;

  // fetch_core.cc
  enum class Where { kAnyThread, kPoolThread };
  void Apply(Effects effects, Where where = Where::kAnyThread) EXCLUDES(mutex_);
  void StartAttempt(const std::shared_ptr<Attempt>& attempt) EXCLUDES(mutex_);
  // The read ended: forgets it, and tells its caller on the pool.
  void Complete(const OpPtr& op, Effects&) REQUIRES(mutex_);
  void RunCompletion() EXCLUDES(mutex_);
  void RunAllCompletions() EXCLUDES(mutex_);
  void CancelEverything(Effects&) REQUIRES(mutex_);
  void AwaitQuiet() EXCLUDES(mutex_);

  // fetch_reads.cc
  std::optional<std::vector<bool>> Look(const FilePtr& file, uint64_t first,
                                        uint64_t last, uint64_t missing);
  void Plan(const OpPtr&, const std::vector<bool>& has, Effects&)
      REQUIRES(mutex_);
  void PlanDirect(const OpPtr& op) REQUIRES(mutex_);
  void Want(const OpPtr& op, uint64_t granule, Effects&) REQUIRES(mutex_);
  void Join(const OpPtr& op, uint64_t granule, Granule& entry) REQUIRES(mutex_);
  void Detach(const OpPtr& op, Effects&) REQUIRES(mutex_);
  void Unwanted(const FilePtr&, uint64_t granule, Effects&) REQUIRES(mutex_);
  void Abandoned(const FlightPtr& flight, Effects&) REQUIRES(mutex_);
  void Erase(FetchFile&, uint64_t granule, Effects&) REQUIRES(mutex_);
  void Enqueue(const FilePtr& file, uint64_t granule, Granule& entry,
               Queue& queue, int64_t ticket) REQUIRES(mutex_);
  void Count(const FetchFile& file, uint64_t granule, Granule& entry,
             bool counted) REQUIRES(mutex_);
  uint64_t PlanPrefetch(const FilePtr& file, uint64_t first,
                        const std::vector<bool>& has) REQUIRES(mutex_);
  void OnDeadline(ReadId id) EXCLUDES(mutex_);
  Error DeadlineError(const ReadOp& op) const REQUIRES(mutex_);

  // fetch_flights.cc
  void Pump(Effects&) REQUIRES(mutex_);
  FlightPtr NextFlight(size_t lively) REQUIRES(mutex_);
  FlightPtr MakeFlight(const QueueItem&, Queue&, size_t free) REQUIRES(mutex_);
  void Launch(const FlightPtr&, Clock::Time now, Effects&) REQUIRES(mutex_);
  void Begin(const std::shared_ptr<Attempt>&, Effects&) REQUIRES(mutex_);
  void End(const Attempt& attempt) REQUIRES(mutex_);
  void EnqueueFlight(const FlightPtr& flight, int64_t ticket) REQUIRES(mutex_);
  bool MayStart(Clock::Time now, size_t lively) const REQUIRES(mutex_);
  size_t Lively(Clock::Time now) const REQUIRES(mutex_);  // not stalled
  void Overtake(Clock::Time now, Effects&) REQUIRES(mutex_);
  bool ConnectionsAreFew(Clock::Time now) const REQUIRES(mutex_);
  bool HasRoomAhead() const REQUIRES(mutex_);
  void ArmWake(Clock::Time now) REQUIRES(mutex_);
  void OnWake() EXCLUDES(mutex_);
  void Consume(Flight&, std::span<const std::byte> data) EXCLUDES(mutex_);
  void Publish(Flight&, uint64_t granule, BytesPtr bytes) EXCLUDES(mutex_);
  void ConsumeDirect(Flight&, std::span<const std::byte> data) EXCLUDES(mutex_);
  void OnBytes(const Attempt& attempt) EXCLUDES(mutex_);
  void OnFetchDone(const Attempt& attempt, Result<> result) EXCLUDES(mutex_);
  void Retry(const FlightPtr&, const Attempt&, Error error, Effects&)
      REQUIRES(mutex_);
  void Fail(Flight&, const Error& cause, Effects&) REQUIRES(mutex_);
  void EraseRest(Flight& flight, Effects&) REQUIRES(mutex_);
  void Drop(const FlightPtr& flight, Effects&) REQUIRES(mutex_);  // unwanted

  // fetch_disk.cc
  void QueueDiskRead(const OpPtr&, uint64_t first, uint64_t last)
      REQUIRES(mutex_);
  bool DiskIsStuck(Clock::Time now) const REQUIRES(mutex_);
  void PumpDisk(Effects&) REQUIRES(mutex_);
  void RunDiskRead(const std::shared_ptr<DiskRead>& read) EXCLUDES(mutex_);
  void FinishDiskRead(const std::shared_ptr<DiskRead>&,
                      const std::vector<uint64_t>& failed, Where)
      EXCLUDES(mutex_);
  void OnDiskPatience(const std::weak_ptr<DiskRead>& weak) EXCLUDES(mutex_);
  bool QueueDiskWrite(const Flight&, uint64_t granule, const BytesPtr& bytes,
                      bool unread, Effects&) REQUIRES(mutex_);
  void Unqueue(const FilePtr&, uint64_t granule, Effects&) REQUIRES(mutex_);
  void RunDiskWrite(const std::shared_ptr<DiskWrite>& write) EXCLUDES(mutex_);
  void FinishDiskWrite(const DiskWrite&, const Result<>&) EXCLUDES(mutex_);
  void ArmTidy(Clock::Time when) REQUIRES(mutex_);
  void Tidy() EXCLUDES(mutex_);

  Origin& origin_;
  TimerQueue& timers_;
  WorkerPool& pool_;
  const FetcherOptions options_;
  std::atomic<ReadId> next_read_{1};
  std::atomic<uint64_t> bytes_fetched_{0};
  std::atomic<bool> disk_error_logged_{false};
  // Looks that may block: the cache's `meta` is mapped.
  const std::shared_ptr<PatientCalls> looks_;
  const std::shared_ptr<FetchClaims> claims_;
  InlineStays inline_reads_;

  mutable Mutex mutex_;
  CondVar quiet_;  // something that Stop() waits for ended
  Phase phase_ GUARDED_BY(mutex_) = Phase::kRunning;
  size_t active_ GUARDED_BY(mutex_) = 0;      // Activity objects
  size_t completing_ GUARDED_BY(mutex_) = 0;  // `done`s that run
  std::multimap<const CacheFile*, std::weak_ptr<FetchFile>> files_
      GUARDED_BY(mutex_);
  size_t files_prune_at_ GUARDED_BY(mutex_) = 64;
  // Not completed. Taken out once, by the one who hands it to completions_.
  std::unordered_map<ReadId, OpPtr> reads_ GUARDED_BY(mutex_);
  std::deque<OpPtr> completions_ GUARDED_BY(mutex_);

  Queue demand_ GUARDED_BY(mutex_);
  Queue prefetch_ GUARDED_BY(mutex_);
  int64_t back_ticket_ GUARDED_BY(mutex_) = 0;
  int64_t front_ticket_ GUARDED_BY(mutex_) = 0;  // of retries, that go first
  std::multimap<Clock::Time, FlightPtr> backoff_ GUARDED_BY(mutex_);
  std::optional<TimerQueue::Id> wake_ GUARDED_BY(mutex_);
  Traffic traffic_ GUARDED_BY(mutex_);
  std::optional<Error> last_error_ GUARDED_BY(mutex_);
  // Flights with an attempt that runs: cancelled ones too, until its OnDone.
  std::unordered_set<FlightPtr> flying_ GUARDED_BY(mutex_);
  size_t probes_ GUARDED_BY(mutex_) = 0;  // of those, started while down
  uint64_t prefetch_bytes_ GUARDED_BY(mutex_) = 0;
  std::deque<std::shared_ptr<DiskRead>> disk_queue_ GUARDED_BY(mutex_);
  std::vector<std::shared_ptr<DiskRead>> disk_reading_ GUARDED_BY(mutex_);
  std::deque<std::shared_ptr<DiskWrite>> write_queue_ GUARDED_BY(mutex_);
  size_t disk_writing_ GUARDED_BY(mutex_) = 0;
  uint64_t unwritten_bytes_ GUARDED_BY(mutex_) = 0;
  UnreadBytes unread_ GUARDED_BY(mutex_);
  bool tidies_ GUARDED_BY(mutex_) = false;  // a timer for it runs
  FetcherStats stats_ GUARDED_BY(mutex_);
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_FETCH_CORE_H_
