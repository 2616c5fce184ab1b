// The parts of FetchCore that its own .cc files share. Not for others.

#ifndef WEIGHTFS_CACHE_FETCH_CORE_INTERNAL_H_
#define WEIGHTFS_CACHE_FETCH_CORE_INTERNAL_H_

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "cache/fetch_core.h"

namespace weightfs {

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
  // Last references, so that no cache file is closed under the mutex.
  std::vector<std::shared_ptr<void>> dropped;
};

// One attempt of a flight: takes its bytes. Keeps the core.
class FetchCore::Attempt final : public FetchSink {
 public:
  Attempt(std::shared_ptr<FetchCore> core, std::shared_ptr<Flight> flight,
          Clock::Time now, bool is_probe)
      : flight_(std::move(flight)),
        offset_(flight_->position),
        length_(flight_->end - flight_->position),
        started_(now),
        probe_(is_probe),
        core_(std::move(core)) {}

  void OnStatus(int status) override { flight_->status = status; }
  bool OnData(std::span<const std::byte> data) override;
  void OnDone(Result<> result) override;

  const std::shared_ptr<Flight>& flight() const { return flight_; }
  uint64_t offset() const { return offset_; }
  uint64_t length() const { return length_; }
  uint64_t received() const { return received_; }
  Clock::Time started() const { return started_; }
  // So many bytes that the flight's backoff starts anew.
  bool MadeProgress() const;
  bool excess() const { return excess_; }
  bool probe() const { return probe_; }

 private:
  const std::shared_ptr<Flight> flight_;
  const uint64_t offset_;
  const uint64_t length_;
  const Clock::Time started_;
  const bool probe_;
  const std::shared_ptr<FetchCore> core_;
  uint64_t received_ = 0;
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
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_FETCH_CORE_INTERNAL_H_
