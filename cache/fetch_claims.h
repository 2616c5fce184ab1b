// FetchClaims: says which granules this process is to fetch, and which another
// process is fetching (cache/LAYOUT.md, "Single flight"). It asks the cache
// files for locks, and looks again at what is published once it has them.
//
// A disk that hangs may block each of these calls, so nobody who asks waits:
// what is asked is queued, and one thread of the pool at a time works it off,
// with patience (PatientCalls), in the order in which it was asked. Who is not
// answered in time fetches without a claim, which costs a transfer at most.
//
// A process that stopped, or whose fetches hang, keeps its claims. Whoever
// waited for one of them in vain calls Distrust(): the claims of that moment
// are remembered, as runs of granules, and nobody waits for them again. One
// that is still worked on changes with each granule and so is waited for.
//
// Thread-safety: safe for concurrent use; the mutex is a leaf. Shared: what is
// queued keeps it, and is answered even if the pool stops first.

#ifndef WEIGHTFS_CACHE_FETCH_CLAIMS_H_
#define WEIGHTFS_CACHE_FETCH_CLAIMS_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "cache/object_cache.h"
#include "cache/patient_calls.h"
#include "cache/read_op.h"
#include "formats/base/clock.h"
#include "formats/base/mutex.h"
#include "formats/base/worker_pool.h"

namespace weightfs {

// What becomes of a granule that somebody asked for.
enum class ClaimFate : uint8_t {
  kMine,       // claimed by this process now, and absent
  kThere,      // published
  kElsewhere,  // another process claims it
  kStuck,      // so it does, and nothing comes of it
  kFree,       // neither there nor claimed: ask for it
};

class FetchClaims : public std::enable_shared_from_this<FetchClaims> {
 public:
  struct Answer {
    std::vector<ClaimFate> fates;  // of the granules, in order
    GranuleRun elsewhere;          // the claim of the first that is kElsewhere
  };
  // Called once, without locks. Nothing: the cache does not answer.
  using Done = std::function<void(std::optional<Answer>)>;

  FetchClaims(WorkerPool& pool, std::shared_ptr<PatientCalls> calls)
      : pool_(pool), calls_(std::move(calls)) {}

  // Each of these only queues. Run() is to follow, without locks.

  // Claims the first run of `granules` that is absent and that nobody claims.
  // What is behind it is kFree.
  void Claim(std::shared_ptr<FetchFile> file, GranuleRun granules, Done done)
      EXCLUDES(mutex_);
  // Asks what became of granules that were kElsewhere; claims none.
  void Look(std::shared_ptr<FetchFile> file, std::vector<uint64_t> granules,
            Done done) EXCLUDES(mutex_);
  void Release(std::shared_ptr<FetchFile> file, GranuleRun granules)
      EXCLUDES(mutex_);
  void Distrust(std::shared_ptr<FetchFile> file) EXCLUDES(mutex_);

  void Run() EXCLUDES(mutex_);

 private:
  struct Job;
  struct Batch;
  class Turn;

  void Queue(std::shared_ptr<Job> job) EXCLUDES(mutex_);
  // Until nothing is queued; by one thread at a time.
  void WorkOff() EXCLUDES(mutex_);

  WorkerPool& pool_;
  const std::shared_ptr<PatientCalls> calls_;
  // Not done yet, since the cache did not answer. WorkOff's.
  std::vector<std::shared_ptr<Job>> overdue_;
  Mutex mutex_;
  std::vector<std::shared_ptr<Job>> jobs_ GUARDED_BY(mutex_);
  bool working_ GUARDED_BY(mutex_) = false;
};

// Granules of one flight that another process fetches, and that readers of this
// one wait for. FetchCore's, guarded by its mutex.
struct ClaimWait {
  std::shared_ptr<FetchFile> file;
  std::vector<uint64_t> granules;  // some may be gone meanwhile
  GranuleRun claim;                // the other's, when it was last looked at
  Clock::Time progressed{};        // when something of it came, or it changed
  Clock::Time end{};               // fetched here then, whatever comes
  Clock::Time::duration period{};  // until the next look
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_FETCH_CLAIMS_H_
