// Fetcher: gets granules of an origin's files over many connections. Ranges
// that several readers want are fetched once; demand goes before prefetch; each
// waiter is answered as soon as its bytes are there; a fetch that breaks is
// retried, with backoff and jitter, from the byte where it broke.
//
// OpenObject joins it with the cache: bytes that
// the cache holds are read from it, others are fetched, served from memory and
// kept. A broken cache slows a read and never fails one that the origin can
// serve.
//
// Thread-safety: safe for concurrent use.

#ifndef WEIGHTFS_CACHE_FETCHER_H_
#define WEIGHTFS_CACHE_FETCHER_H_

#include <chrono>
#include <cstdint>
#include <memory>

#include "cache/object.h"
#include "cache/object_cache.h"
#include "cache/origin.h"
#include "formats/base/timer_queue.h"
#include "formats/base/worker_pool.h"

namespace weightfs {

struct FetcherOptions {
  // Fetches in flight at once: how many at first, and at most, where more bring
  // more (cache/concurrency.h). Prefetch leaves a quarter of them to demand.
  size_t connections = 16;
  size_t most_connections = 48;
  // A fetch that got no byte for so long does not count as in flight where a
  // reader waits: up to four times `connections` may hang.
  std::chrono::milliseconds stall_patience{1'000};
  // A fetch that somebody waits for is first asked after so long whether it is
  // slow (cache/pace.h), and then goes on over another connection, from the
  // byte that it has come to; each time after twice as long.
  std::chrono::milliseconds slow_patience{1'500};
  uint64_t max_request = 4 << 20;  // bytes of one fetch
  uint64_t max_rate = 0;  // bytes per second of all together; 0: no limit
  // A run of missing bytes is spread over free connections in pieces of at
  // least this.
  uint64_t min_split = 1 << 20;
  std::chrono::milliseconds first_backoff{100};
  std::chrono::milliseconds max_backoff{10'000};
  // Of one that nobody waits for, where the way is long.
  uint64_t max_ahead_request = 8 << 20;
  uint64_t max_prefetch_bytes = 512 << 20;  // queued and in flight
  // Fetched granules that wait in memory for the disk; past this they are not
  // kept, and past the second nothing is fetched that nobody waits for.
  uint64_t max_unwritten_bytes = 64 << 20;
  uint64_t max_backlog_bytes = 128 << 20;
  // Threads of the pool that may be in the disk at once. The pool needs more
  // than their sum, or a disk that hangs holds up completions too.
  size_t disk_reads = 4;
  size_t disk_writes = 2;
  // A cached granule that the disk did not give by then is fetched.
  std::chrono::milliseconds disk_patience{2'000};
  // What another process fetches is fetched here as well once nothing of it
  // came for so long, and in any case after the second of these, or a third of
  // what is left to a reader's deadline.
  std::chrono::milliseconds claim_patience{2'000};
  std::chrono::milliseconds claim_limit{10'000};
  // Reads of bytes that failed so short a time ago fail at once, alike.
  std::chrono::milliseconds failure_memory{1'000};
  uint64_t seed = 0;  // of the jitter; 0: from the system
};

struct FetcherStats {
  uint64_t fetches = 0;         // attempts started
  uint64_t retries = 0;         // of those, not the first of their flight
  uint64_t overtaken = 0;       // attempts broken off, since they were slow
  uint64_t bytes_fetched = 0;   // received from the origin
  uint64_t bytes_not_kept = 0;  // served, but the cache could not keep them
  // Cached granules that had to be fetched again: absent or bad after all, a
  // disk error, or a disk that took too long.
  uint64_t cache_read_failures = 0;
  uint64_t waits_for_others = 0;      // for fetches of other processes
  uint64_t granules_from_others = 0;  // that came so
  uint64_t claiming = 0;  // attempts that ask now whether another fetches
};

class Fetcher {
 public:
  // `origin`, `timers` and `pool` must outlive it. `pool` runs completions and
  // disk I/O. StartFetch and CancelFetch are called from any thread, those of
  // sinks and timers included, with no lock held.
  static std::unique_ptr<Fetcher> Create(Origin& origin, TimerQueue& timers,
                                         WorkerPool& pool,
                                         const FetcherOptions& options);
  // Stops: see Stop(). Objects may outlive it and are as after Stop() then.
  virtual ~Fetcher() = default;

  // An object that is read through this fetcher. `file_in_cache` null: nothing
  // is kept (a local folder, or a cache that cannot be used): each read fetches
  // exactly its bytes, and Prefetch does nothing.
  virtual std::shared_ptr<Object> OpenObject(
      const FileInfo& file, std::shared_ptr<CacheFile> file_in_cache) = 0;

  // Ends every read with kCancelled and cancels every fetch. Returns when no
  // fetch and no `done` runs: as soon as the origin ended the cancelled fetches
  // (at once, by CancelFetch's contract; an origin that does not is left after
  // 5 s, and may then still call sinks, which do nothing), plus at most 0.5 s
  // to write what was fetched. Later reads end with kCancelled at once, their
  // `done` inside StartRead; TryRead still serves what the cache has. `done`s
  // that no pool thread took yet run inside Stop. Idempotent. Not to be called
  // from a `done`, nor with a lock that a `done` takes.
  virtual void Stop() = 0;
  virtual FetcherStats stats() const = 0;
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_FETCHER_H_
