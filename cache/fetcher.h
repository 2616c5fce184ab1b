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
  size_t connections = 16;         // fetches in flight at once
  uint64_t max_request = 4 << 20;  // bytes of one fetch
  std::chrono::milliseconds first_backoff{100};
  std::chrono::milliseconds max_backoff{10'000};
  uint64_t max_prefetch_bytes = 256 << 20;  // queued and in flight
  uint64_t seed = 0;                        // of the jitter; 0: from the system
};

struct FetcherStats {
  uint64_t fetches = 0;         // attempts started
  uint64_t retries = 0;         // of those, after a failure
  uint64_t bytes_fetched = 0;   // received from the origin
  uint64_t bytes_not_kept = 0;  // served, but the cache could not keep them
};

class Fetcher {
 public:
  // `origin`, `timers` and `pool` must outlive it. `pool` runs completions and
  // disk reads.
  static std::unique_ptr<Fetcher> Create(Origin& origin, TimerQueue& timers,
                                         WorkerPool& pool,
                                         const FetcherOptions& options);
  // Stops: see Stop().
  virtual ~Fetcher() = default;

  // An object that is read through this fetcher. `file_in_cache` null: nothing
  // is kept (a local folder, or a cache that cannot be used).
  virtual std::shared_ptr<Object> OpenObject(
      const FileInfo& file, std::shared_ptr<CacheFile> file_in_cache) = 0;

  // Ends every read with kCancelled and every fetch; later reads of uncached
  // bytes end so at once. Returns when no fetch of its own runs. Idempotent.
  virtual void Stop() = 0;
  virtual FetcherStats stats() const = 0;
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_FETCHER_H_
