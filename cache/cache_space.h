// CacheSpace: keeps the cache folder inside its limits: whoever is about to
// write asks first, and where there is no room the least recently used slabs
// are evicted. Every process that writes does so by its own limits; a lock
// keeps two from evicting at once. See cache/LAYOUT.md, "Evicting".
//
// Thread-safety: safe for concurrent use, also between processes.

#ifndef WEIGHTFS_CACHE_CACHE_SPACE_H_
#define WEIGHTFS_CACHE_CACHE_SPACE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "cache/cache_disk.h"
#include "cache/cache_folder.h"
#include "cache/object_cache.h"
#include "formats/base/clock.h"
#include "formats/base/mutex.h"

namespace weightfs {

class CacheSpace {
 public:
  struct Stats {
    uint64_t evicted_bytes = 0;
    uint64_t refusals = 0;  // of Take
  };

  // Both must outlive it.
  CacheSpace(CacheFolder& folder, CacheDisk& disk, const CacheLimits& limits)
      : folder_(folder), disk_(disk), limits_(limits) {}

  // True if `bytes` more may be written. Waits for the disk where it must
  // evict; false, and soon, where nothing can be evicted.
  bool Take(uint64_t bytes) EXCLUDES(mutex_);
  // Evicts down to the limits, if they are exceeded.
  void Trim() EXCLUDES(mutex_);
  Stats stats() const EXCLUDES(mutex_);

  // Bytes of the disk that the folder takes, as du counts them.
  uint64_t UsedBytes() const;

 private:
  struct Found;

  // What may still be written; may be 0.
  uint64_t Room() const;
  uint64_t Headroom() const;
  // Makes room, if there is less than the headroom.
  void MakeRoom() EXCLUDES(mutex_);
  void Evict(uint64_t wanted) EXCLUDES(mutex_);
  Found Walk() const;
  void WalkObjects(const std::string& folder, Found* found) const;
  uint64_t EvictFrom(const std::string& path, uint64_t slab, uint64_t wanted);

  CacheFolder& folder_;
  CacheDisk& disk_;
  const CacheLimits limits_;

  mutable Mutex mutex_;  // no I/O under it
  CondVar measured_;
  // One thread looks at the disk; the others wait for what it finds.
  bool measuring_ GUARDED_BY(mutex_) = false;
  // May be written before the next look. A part of the room only: other
  // processes have permits, too.
  uint64_t permit_ GUARDED_BY(mutex_) = 0;
  Clock::Time full_until_ GUARDED_BY(mutex_);  // no look before
  Stats stats_ GUARDED_BY(mutex_);
};

// Bytes of the largest object that may be whole in a cache of `max_bytes`: the
// evictor takes more away of one that leaves no headroom.
uint64_t LargestWholeObject(uint64_t max_bytes);

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_CACHE_SPACE_H_
