// The parts of FetchCore that its own .cc files share. Not for others.

#ifndef WEIGHTFS_CACHE_FETCH_CORE_INTERNAL_H_
#define WEIGHTFS_CACHE_FETCH_CORE_INTERNAL_H_

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "cache/fetch_core.h"

namespace weightfs {

// What one task reads of the cache: 1 MiB.
inline constexpr uint64_t kDiskReadGranules = 8;

class FetchCore::Activity {
 public:
  explicit Activity(FetchCore& core) : core_(core) {
    MutexLock lock(core_.mutex_);
    entered_ = core_.phase_ < Phase::kClosed;
    if (entered_) ++core_.active_;
  }
  ~Activity() {
    if (!entered_) return;
    MutexLock lock(core_.mutex_);
    --core_.active_;
    core_.quiet_.NotifyAll();
  }
  Activity(const Activity&) = delete;
  Activity& operator=(const Activity&) = delete;

  // False once Stop() closed it: the origin, the timers and the pool must not
  // be touched any more.
  bool entered() const { return entered_; }

 private:
  FetchCore& core_;
  bool entered_ = false;
};

// What is to be done once the mutex is released.
struct FetchCore::Effects {
  struct Filling {
    std::shared_ptr<ReadOp> op;
    uint64_t granule;
    std::shared_ptr<const GranuleBytes> bytes;
  };
  struct Failing {
    std::shared_ptr<ReadOp> op;
    Error error;
  };
  std::vector<FetchId> cancels;
  std::vector<Filling> fills;
  std::vector<Failing> failures;
  // Reads that somebody else ended or will have ended when this is applied.
  std::vector<std::shared_ptr<ReadOp>> ended;
  std::vector<std::shared_ptr<Attempt>> starts;
  std::vector<std::shared_ptr<DiskRead>> disk_reads;
  std::vector<std::shared_ptr<DiskWrite>> disk_writes;
  size_t completions = 0;  // pushed to completions_
  bool claims = false;     // claims_ was asked for something
  // Last references, so that no cache file is closed under the mutex.
  std::vector<std::shared_ptr<void>> dropped;
};

// One attempt of a flight: takes its bytes. Keeps the core.
class FetchCore::Attempt final : public FetchSink {
 public:
  Attempt(std::shared_ptr<FetchCore> core, std::shared_ptr<Flight> flight,
          Clock::Time now, bool is_probe)
      : flight_(std::move(flight)),
        started_(now),
        probe_(is_probe),
        core_(std::move(core)) {}

  void OnStatus(int status) override { flight_->status = status; }
  bool OnData(std::span<const std::byte> data) override;
  void OnDone(Result<> result) override;

  // What it fetches is known now: the rest of its flight.
  void Begin(Clock::Time now) {
    began_ = now;
    offset_ = flight_->position;
    length_ = flight_->end - flight_->position;
  }

  const std::shared_ptr<Flight>& flight() const { return flight_; }
  uint64_t offset() const { return offset_; }
  uint64_t length() const { return length_; }
  uint64_t received() const { return received_; }
  Clock::Time first_bytes() const { return first_bytes_; }
  Clock::Time started() const { return started_; }
  Clock::Time began() const { return began_; }  // once it asked the origin
  // So many bytes that the flight's backoff starts anew.
  bool MadeProgress() const;
  bool excess() const { return excess_; }
  bool probe() const { return probe_; }

 private:
  const std::shared_ptr<Flight> flight_;
  uint64_t offset_ = 0;
  uint64_t length_ = 0;
  const Clock::Time started_;
  const bool probe_;
  const std::shared_ptr<FetchCore> core_;
  Clock::Time began_{};
  uint64_t received_ = 0;
  Clock::Time first_bytes_{};  // when they came
  bool excess_ = false;
  bool done_ = false;
};

// A run of granules that the cache has, for one read.
struct FetchCore::DiskRead {
  std::vector<uint64_t> Granules() const {
    std::vector<uint64_t> all;
    for (uint64_t g = first; g <= last; ++g) all.push_back(g);
    return all;
  }

  std::shared_ptr<ReadOp> op;
  uint64_t first = 0;
  uint64_t last = 0;
  Clock::Time started{};                     // set when it goes to the pool
  std::optional<TimerQueue::Id> patience{};  // while it is not over
};

struct FetchCore::DiskWrite {
  std::shared_ptr<FetchFile> file;
  uint64_t granule = 0;
  std::shared_ptr<const GranuleBytes> bytes;
  bool claimed = false;
};

// Single flight between processes. A flight of granules asks for their claim
// before its first attempt asks the origin (FetchClaims). It goes on with the
// first run that it got; what is there already its waiters read from the cache;
// what another process claims they wait for, as kElsewhere, looking again and
// again; prefetch leaves that alone.
struct FetchCore::Sharing {
  // Of a flight that is launched: true if its attempt has to wait for the
  // claim.
  static bool Ask(FetchCore& core, const std::shared_ptr<Attempt>& attempt,
                  Effects& effects) REQUIRES(core.mutex_);
  // The attempt goes to the origin, or ends.
  static void Asked(FetchCore& core, Flight& flight) REQUIRES(core.mutex_);
  // Gives back what the flight claims and did not publish.
  static void Release(FetchCore& core, Flight& flight, Effects& effects)
      REQUIRES(core.mutex_);
  // As Want, for a granule that the cache has and does not give.
  static void WantAnyway(FetchCore& core, const std::shared_ptr<ReadOp>& op,
                         uint64_t granule, Effects& effects)
      REQUIRES(core.mutex_);
  // A reader waits for what is elsewhere: no longer than it can afford.
  static void Hurry(ClaimWait& wait, const ReadOp& op, Clock::Time now);

 private:
  using Answer = FetchClaims::Answer;
  using WaitPtr = std::shared_ptr<ClaimWait>;

  static void OnClaimed(FetchCore& core,
                        const std::shared_ptr<Attempt>& attempt,
                        const std::optional<Answer>& answer)
      EXCLUDES(core.mutex_);
  // False if nothing is left for the flight to fetch.
  static bool Settle(FetchCore& core, const std::shared_ptr<Flight>& flight,
                     const Answer& answer, Effects& effects)
      REQUIRES(core.mutex_);
  static void Wait(FetchCore& core, const WaitPtr& wait, Clock::Time now)
      REQUIRES(core.mutex_);
  static void OnTime(FetchCore& core, const WaitPtr& wait)
      EXCLUDES(core.mutex_);
  static void OnLooked(FetchCore& core, const WaitPtr& wait,
                       const std::vector<uint64_t>& granules,
                       const std::optional<Answer>& answer)
      EXCLUDES(core.mutex_);
  // Its waiters read it from the cache.
  static void Serve(FetchCore& core, const std::shared_ptr<FetchFile>& file,
                    const std::vector<uint64_t>& granules, Effects& effects)
      REQUIRES(core.mutex_);
  // To be fetched, before others.
  static void Requeue(FetchCore& core, const std::shared_ptr<FetchFile>& file,
                      const std::vector<uint64_t>& granules, Effects& effects)
      REQUIRES(core.mutex_);
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_FETCH_CORE_INTERNAL_H_
