// ObjectCache: objects' bytes on the local disk, shared by all processes of one
// user. The layout and why it is safe are in cache/LAYOUT.md; in short: `data`
// is sparse with the origin's offsets, `meta` holds one u64 hash per granule
// (0: absent), a shared OFD lock on a slab keeps an evictor away, and each
// process hashes each granule at its first use.
//
// Thread-safety: all classes are safe for concurrent use.

#ifndef WEIGHTFS_CACHE_OBJECT_CACHE_H_
#define WEIGHTFS_CACHE_OBJECT_CACHE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "cache/cache_disk.h"
#include "cache/origin.h"
#include "formats/base/result.h"
#include "formats/base/unique_fd.h"

namespace weightfs {

inline constexpr uint64_t kGranuleSize = 128 * 1024;     // bytes
inline constexpr uint64_t kSlabSize = 64 * 1024 * 1024;  // bytes
inline constexpr uint64_t kGranulesPerSlab = kSlabSize / kGranuleSize;

// What a cache folder may take; see CacheSpace.
struct CacheLimits {
  uint64_t max_bytes = UINT64_MAX;  // of the disk, all that is in the folder
  uint64_t keep_free = 0;           // bytes of the file system left to others
  bool unlimited() const { return max_bytes == UINT64_MAX && keep_free == 0; }
};

// Keeps the slabs of a range from being evicted, by this or any other process,
// as long as it lives. Movable; empty after a move.
class SlabPin {
 public:
  // What a pin holds; letting go of it is the implementation's.
  class Hold {
   public:
    virtual ~Hold() = default;
  };

  SlabPin() = default;
  explicit SlabPin(std::unique_ptr<Hold> hold) : hold_(std::move(hold)) {}

 private:
  std::unique_ptr<Hold> hold_;
};

// Granules that follow each other. Empty: none.
struct GranuleRun {
  uint64_t first = 0;
  uint64_t count = 0;

  uint64_t end() const { return first + count; }
  explicit operator bool() const { return count > 0; }
  bool operator==(const GranuleRun&) const = default;
};

// One object's file in the cache. Where the file breaks while it is open
// (truncated, its disk failing), every granule counts as absent and nothing is
// kept from then on; the next OpenObject makes it anew.
class CacheFile : public std::enable_shared_from_this<CacheFile> {
 public:
  virtual ~CacheFile() = default;

  virtual uint64_t size() const = 0;
  // Whether the granule is published. Advisory without a pin.
  virtual bool Has(uint64_t granule) const = 0;
  // Bytes of published granules ÷ size; 1 for an empty object.
  virtual double CachedFraction() const = 0;

  // Keeps the file open. Never waits. kStale: a slab is being evicted now; take
  // the range as absent. kInvalid: the range is not in the object. kIo: the
  // locks failed; serve without the cache.
  virtual Result<SlabPin> Pin(uint64_t offset, uint64_t length) = 0;

  // Fills `out` from `offset`. REQUIRES: the range is pinned. kStale: a granule
  // is absent, or its bytes did not match its hash, in which case it is absent
  // now; fetch it. kIo: the disk failed; fetch and serve without the cache.
  virtual Result<> Read(uint64_t offset, std::span<std::byte> out) = 0;
  // As Read, but false unless every granule was hashed by this process before
  // and its bytes are in the page cache: never waits for the disk.
  virtual bool TryRead(uint64_t offset, std::span<std::byte> out) = 0;

  // As TryRead, but where they lie in memory, to be passed to system calls
  // while the pin is kept: see lent_bytes.h. Empty also where the disk may
  // still lose them: unless the object is sealed.
  virtual std::span<const std::byte> TryLend(uint64_t /*offset*/,
                                             uint64_t /*length*/) {
    return {};
  }

  // Writes and publishes one granule: kGranuleSize bytes, fewer for the last.
  // Bytes that are there already are not written again. An error leaves it as
  // it was: kNoSpace, kIo; kStale: its slab is being evicted; kCorrupt: other
  // bytes are published, and match their hash. Pins by itself; waits for the
  // disk.
  virtual Result<> Put(uint64_t granule, std::span<const std::byte> bytes) = 0;

  // False once the file broke, was poisoned, or stopped to be another
  // namespace's verified object: every granule counts as absent. Open it anew.
  virtual bool IsWhole() const = 0;

  // Whole-file hashes. Changes before published bytes of the slab may become
  // others.
  virtual uint32_t Generation(uint64_t slab) const = 0;
  // Whether the whole-file hash was right and no byte was lost since.
  virtual bool verified() const = 0;
  // The whole-file hash is right: makes the object known by its id to all
  // namespaces. `generations`: of each slab, from before its bytes were hashed.
  // kStale: some were lost or changed since. Waits for the disk.
  virtual Result<> Promote(std::span<const uint32_t> generations) = 0;
  // The whole-file hash is wrong: nothing of it is used any more, by any
  // process.
  virtual void Poison() = 0;

  // A descriptor of its own on the whole object, for reading and mapping by a
  // process that hashes nothing: sealed, that is complete, on the disk and of
  // the right whole-file hash in this boot. It, or a mapping of it, keeps the
  // object from being evicted. Hashes the file unless it is sealed: waits for
  // the disk. kStale: not complete, or being evicted. kCorrupt: the hash is
  // wrong.
  virtual Result<UniqueFd> Share() = 0;
  // As Share, of an object that is verified and sealed already; else kStale.
  // Hashes nothing.
  virtual Result<UniqueFd> ShareSealed() = 0;
  // Seals what was hashed already: the whole-file hash is right, and
  // `generations` and `losses` are those from before any of it was read for
  // that. kStale: bytes were lost or changed since. Waits for the disk, slab by
  // slab while `go_on` is true, else kCancelled.
  virtual Result<> Seal(std::span<const uint32_t> generations, uint64_t losses,
                        const std::function<bool()>& go_on) = 0;
  // How often the disk is known to have lost bytes of it.
  virtual uint64_t losses() const = 0;

  // Claims granules from `first` on for a fetch of this process, so that others
  // wait for them. How many of them are claimed now: `count`, or fewer where
  // another process claimed the next. They end with Unclaim, or with the
  // process. They save transfers and promise nothing.
  virtual uint64_t Claim(uint64_t first, uint64_t count) = 0;
  virtual void Unclaim(uint64_t first, uint64_t count) = 0;
  // A run of granules that another process claims, as it claims them, of which
  // some are among the `count` from `first` on. Empty: nobody claims those.
  virtual GranuleRun ClaimedElsewhere(uint64_t first,
                                      uint64_t count = 1) const = 0;
};

class ObjectCache {
 public:
  struct Stats {
    uint64_t write_failures = 0;  // granules that could not be kept
    uint64_t bad_granules = 0;    // hashes that did not match
    uint64_t evicted_bytes = 0;
  };

  // Opens the folder or makes it (mode 0700). kDenied: it is another uid's, or
  // others may write to it. kUnsupported: its file system has no OFD locks
  // between processes, or the layout is another version's. Call it before
  // threads start: it forks a probe. `disk` must outlive the cache and its
  // files.
  static Result<std::unique_ptr<ObjectCache>> Open(
      const std::string& folder, const CacheLimits& limits = {},
      CacheDisk& disk = CacheDisk::System());
  virtual ~ObjectCache() = default;

  virtual const std::string& folder() const = 0;
  // The file for `id` as `cache_namespace` claims it, made if it is not there.
  // A damaged one, or one of another size, is set aside and made anew.
  // kInvalid: not an id that can be cached (kStat, not plain hex). Any other
  // error: the disk cannot hold it now (kNoSpace, kIo), or it is too large
  // (kUnsupported); serve it without the cache.
  virtual Result<std::shared_ptr<CacheFile>> OpenObject(
      const std::string& cache_namespace, const ContentId& id,
      uint64_t size) = 0;
  // Evicts down to the limits, if they are exceeded. Waits for the disk.
  virtual void Trim() = 0;
  virtual Stats stats() const = 0;
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_OBJECT_CACHE_H_
