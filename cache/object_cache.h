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
#include <memory>
#include <span>
#include <string>

#include "cache/origin.h"
#include "formats/base/result.h"

namespace weightfs {

inline constexpr uint64_t kGranuleSize = 128 * 1024;     // bytes
inline constexpr uint64_t kSlabSize = 64 * 1024 * 1024;  // bytes

// Keeps the slabs of a range from being evicted, by this or any other process,
// as long as it lives. Movable; empty after a move.
class SlabPin {
 public:
  SlabPin() = default;
  SlabPin(SlabPin&&) noexcept;
  SlabPin& operator=(SlabPin&&) noexcept;
  ~SlabPin();

 private:
  friend class CacheFile;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// One object's file in the cache.
class CacheFile : public std::enable_shared_from_this<CacheFile> {
 public:
  virtual ~CacheFile() = default;

  virtual uint64_t size() const = 0;
  // Whether the granule is published. Advisory without a pin.
  virtual bool Has(uint64_t granule) const = 0;
  // Bytes of published granules ÷ size; 1 for an empty object.
  virtual double CachedFraction() const = 0;

  virtual Result<SlabPin> Pin(uint64_t offset, uint64_t length) = 0;

  // Fills `out` from `offset`. REQUIRES: the range is pinned. kStale: a granule
  // is absent, or its bytes did not match its hash, in which case it is absent
  // now; fetch it. kIo: the disk failed; fetch and serve without the cache.
  virtual Result<> Read(uint64_t offset, std::span<std::byte> out) = 0;
  // As Read, but false unless every granule was hashed by this process before
  // and its bytes are in the page cache: never waits for the disk.
  virtual bool TryRead(uint64_t offset, std::span<std::byte> out) = 0;

  // Writes and publishes one granule: kGranuleSize bytes, fewer for the last.
  // An error (kNoSpace, kIo) leaves it absent. Pins by itself.
  virtual Result<> Put(uint64_t granule, std::span<const std::byte> bytes) = 0;
};

class ObjectCache {
 public:
  struct Stats {
    uint64_t write_failures = 0;  // granules that could not be kept
    uint64_t bad_granules = 0;    // hashes that did not match
  };

  // Opens or makes the folder (mode 0700, owned by this uid). kDenied: another
  // uid's. kUnsupported: its file system has no OFD locks between processes, or
  // the layout is a newer version's.
  static Result<std::unique_ptr<ObjectCache>> Open(const std::string& folder);
  virtual ~ObjectCache() = default;

  virtual const std::string& folder() const = 0;
  // The file for `id` as `cache_namespace` claims it, made if it is not there.
  // kCorrupt or another size on disk: the old file is set aside and made anew.
  virtual Result<std::shared_ptr<CacheFile>> OpenObject(
      const std::string& cache_namespace, const ContentId& id,
      uint64_t size) = 0;
  virtual Stats stats() const = 0;
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_OBJECT_CACHE_H_
