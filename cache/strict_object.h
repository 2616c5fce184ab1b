// StrictReads: objects whose bytes are held back until the hash of their whole
// file was right. A read of a file that is not verified makes all of it be
// fetched into the cache, and waits until the Verifier passed it; its bytes
// then come from the cache alone, and only if the file was verified before and
// after they were read. So no byte of a wrong file is ever given to anybody.
//
// A read's deadline is its patience here: it ends when for so long nothing more
// of the file came than ever before since somebody waits for it, a granule of
// 128 KiB or a piece of its hash. What cannot be verified fails: a file that
// the cache cannot keep whole, one whose origin sends other bytes.
//
// Thread-safety: safe for concurrent use.

#ifndef WEIGHTFS_CACHE_STRICT_OBJECT_H_
#define WEIGHTFS_CACHE_STRICT_OBJECT_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

#include "cache/object.h"
#include "cache/object_cache.h"
#include "cache/verifier.h"
#include "formats/base/timer_queue.h"
#include "formats/base/worker_pool.h"

namespace weightfs {

class StrictReads {
 public:
  // All must outlive the last use of the objects, or Stop().
  struct Parts {
    TimerQueue* timers = nullptr;
    WorkerPool* pool = nullptr;  // runs completions
    Verifier* verifier = nullptr;
    // Bytes of the largest file that the cache keeps whole.
    uint64_t largest = UINT64_MAX;
    // Of reads without a deadline.
    std::chrono::milliseconds patience{300'000};
  };
  // Opens the file anew, after its cached bytes were found wrong or broke. Does
  // disk I/O. What it captures must live until Stop().
  using Reopen = std::function<std::shared_ptr<Object>()>;

  explicit StrictReads(const Parts& parts);
  // Stops.
  ~StrictReads();
  StrictReads(const StrictReads&) = delete;
  StrictReads& operator=(const StrictReads&) = delete;

  // The file of `object`, which is read by way of `cached`.
  std::shared_ptr<Object> Wrap(std::shared_ptr<Object> object,
                               std::shared_ptr<CacheFile> cached,
                               Reopen reopen);

  // Ends every read with kCancelled, later ones too, and waits for what uses
  // the disk. After the fetcher's Stop(). Idempotent.
  void Stop();

  struct Shared;

 private:
  const std::shared_ptr<Shared> shared_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_STRICT_OBJECT_H_
