// Verifier: checks whole-file hashes in the background. It follows each watched
// file's bytes from the start as they come, while the page cache still has
// them; a file whose hash is right is promoted, one whose hash is wrong is
// poisoned. See cache/LAYOUT.md, "Promotion".
//
// Thread-safety: safe for concurrent use.

#ifndef WEIGHTFS_CACHE_VERIFIER_H_
#define WEIGHTFS_CACHE_VERIFIER_H_

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "cache/content_hash.h"
#include "cache/courtesy.h"
#include "cache/object_cache.h"
#include "cache/origin.h"
#include "formats/base/mutex.h"

namespace weightfs {

class Verifier {
 public:
  // A file's hash was wrong. Runs on the Verifier's thread, with no lock held.
  using OnWrong = std::function<void(const FileInfo& file)>;
  struct Stats {
    uint64_t verified = 0;  // files
    uint64_t sealed = 0;    // files
    uint64_t wrong = 0;     // files
    uint64_t hashed_bytes = 0;
  };

  Verifier();
  // Stops.
  ~Verifier();
  Verifier(const Verifier&) = delete;
  Verifier& operator=(const Verifier&) = delete;

  // Set before the first Watch.
  void SetOnWrong(OnWrong on_wrong) { on_wrong_ = std::move(on_wrong); }

  // Follows `cached`, which holds bytes of `file`, as long as somebody else
  // keeps it open, until it is verified, and then sealed for readers that check
  // nothing (CacheFile::ShareSealed, TryLend), or wrong. Fine if it is watched.
  void Watch(const FileInfo& file, const std::shared_ptr<CacheFile>& cached)
      EXCLUDES(mutex_);
  // As Watch; hashes it though it is verified, if it is not sealed.
  void WatchToSeal(const FileInfo& file,
                   const std::shared_ptr<CacheFile>& cached) EXCLUDES(mutex_);
  // There may be something to do: do not wait for the next look.
  void Nudge() EXCLUDES(mutex_);
  // How much of the file is hashed; 0: it is not followed, or done.
  uint64_t HashedBytes(const CacheFile& cached) const EXCLUDES(mutex_);
  Stats stats() const EXCLUDES(mutex_);

  // Ends; waits for a disk read that runs. Idempotent.
  void Stop() EXCLUDES(mutex_);

 private:
  struct Watched;
  std::shared_ptr<Watched> Find(
      const std::weak_ptr<const CacheFile>& cached) const REQUIRES(mutex_);
  enum class Step { kIdle, kMoved, kDone };

  void Run() EXCLUDES(mutex_);
  // Hashes a little of it.
  Step Advance(Watched& watched) EXCLUDES(mutex_);
  Step Conclude(Watched& watched, CacheFile& cached) EXCLUDES(mutex_);
  static Step End(Watched& watched);
  Step Trust(Watched& watched, CacheFile& cached,
             const std::vector<uint32_t>& generations) EXCLUDES(mutex_);

  OnWrong on_wrong_;
  mutable Mutex mutex_;
  CondVar wake_;
  bool stopping_ GUARDED_BY(mutex_) = false;
  bool nudged_ GUARDED_BY(mutex_) = false;
  std::vector<std::shared_ptr<Watched>> watched_ GUARDED_BY(mutex_);
  Stats stats_ GUARDED_BY(mutex_);
  // Its thread's: how long to rest after this round.
  Courtesy courtesy_;
  Courtesy::Duration rest_{};
  std::jthread thread_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_VERIFIER_H_
