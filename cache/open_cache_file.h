// OpenCacheFile: a CacheFile of the cache folder. open_cache_file.cc reads and
// writes, cache_file_trust.cc verifies, shares and claims, cache_file_audit.cc
// checks all of it. Private to the cache.

#ifndef WEIGHTFS_CACHE_OPEN_CACHE_FILE_H_
#define WEIGHTFS_CACHE_OPEN_CACHE_FILE_H_

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "cache/cache_disk.h"
#include "cache/cache_folder.h"
#include "cache/cache_space.h"
#include "cache/data_mapping.h"
#include "cache/hashed_set.h"
#include "cache/meta_file.h"
#include "cache/object_cache.h"
#include "cache/object_files.h"
#include "cache/slab_locks.h"
#include "formats/base/mutex.h"

namespace weightfs {

// What the files of one cache share, and keep.
struct CacheParts {
  CacheParts(std::unique_ptr<CacheFolder> cache_folder, CacheDisk& cache_disk,
             const CacheLimits& limits)
      : folder(std::move(cache_folder)),
        disk(cache_disk),
        space(*folder, disk, limits) {}

  const std::unique_ptr<CacheFolder> folder;
  CacheDisk& disk;
  CacheSpace space;
  std::atomic<uint64_t> write_failures{0};
  std::atomic<uint64_t> bad_granules{0};
};

class OpenCacheFile final : public CacheFile {
 public:
  // `opened` for the namespace of the number `owner`.
  OpenCacheFile(std::shared_ptr<CacheParts> parts, ObjectFiles opened,
                ContentId id, uint64_t owner);

  uint64_t size() const override { return layout_.object_size; }
  bool Has(uint64_t granule) const override;
  double CachedFraction() const override;
  Result<SlabPin> Pin(uint64_t offset, uint64_t length) override;
  Result<> Read(uint64_t offset, std::span<std::byte> out) override;
  bool TryRead(uint64_t offset, std::span<std::byte> out) override;
  std::span<const std::byte> TryLend(uint64_t offset, uint64_t length) override;
  Result<> Put(uint64_t granule, std::span<const std::byte> bytes) override;
  bool IsWhole() const override;
  uint32_t Generation(uint64_t slab) const override {
    return meta().Generation(slab);
  }
  bool verified() const override { return meta().verified() && IsWhole(); }
  Result<> Promote(std::span<const uint32_t> generations) override;
  void Poison() override;
  Result<UniqueFd> Share() override;
  Result<UniqueFd> ShareSealed() override;
  Result<> Seal(std::span<const uint32_t> generations, uint64_t losses,
                const std::function<bool()>& go_on) override;
  uint64_t losses() const override { return Losses(); }
  uint64_t Claim(uint64_t first, uint64_t count) override;
  void Unclaim(uint64_t first, uint64_t count) override;
  GranuleRun ClaimedElsewhere(uint64_t first, uint64_t count) const override;

  // False once the files broke, or were removed.
  bool IsUsable() const;

  struct Audited {
    uint64_t cached_bytes = 0;  // of granules whose bytes match their entries
    uint64_t bad_granules = 0;  // that did not; they are absent now
    // The whole-file hash, if every granule was there: right, and the object is
    // verified now, or wrong, and it is poisoned.
    bool right = false;
    std::string wrong_hash;
  };
  // Reads and hashes all that is published, from the disk, whatever was hashed
  // before. `on_bytes` is told how far it came, by how many bytes at a time.
  // kStale: the file broke, or changed all the time. Waits for the disk.
  // REQUIRES: it was opened for its own owner.
  Result<Audited> Audit(const std::function<void(uint64_t)>& on_bytes);

 private:
  class Hold;

  MetaFile& meta() const { return *files_.meta; }
  int fd() const { return files_.data.get(); }
  uint64_t GranuleLength(uint64_t granule) const {
    return std::min(kGranuleSize, size() - granule * kGranuleSize);
  }

  // Forgets hashes of an earlier generation. To be called with the slabs of the
  // granules pinned, before the hashes are used.
  void ForgetOldHashes(uint64_t first_granule, uint64_t last_granule);
  // Whether what is published in the range was hashed by this process.
  bool IsHashed(uint64_t offset, uint64_t length);
  uint64_t Losses() const { return losses_.load(); }
  // `losses`: Losses() before; a hash from before a loss proves nothing.
  Result<> ReadOnce(uint64_t offset, std::span<std::byte> out, uint64_t losses);
  Result<> ReadAndHash(uint64_t granule, uint64_t offset,
                       std::span<std::byte> out, uint64_t losses);
  Result<> ReadFully(uint64_t offset, std::span<std::byte> out);
  // True if a write-back failed since Losses() was `losses`, so that bytes
  // hashed or read since may not be the right ones.
  bool LostBytes(uint64_t losses) EXCLUDES(loss_mutex_);
  // Of a Sync or WriteOut, whose error the kernel does not tell again.
  Result<> CheckWritten(int result) EXCLUDES(loss_mutex_);
  void CountLoss(int error) REQUIRES(loss_mutex_);
  Result<> PutPinned(uint64_t granule, std::span<const std::byte> bytes);
  // True if the granule is published and its bytes match.
  Result<bool> IsPublished(uint64_t granule, uint64_t hash);
  Result<> CheckData();
  // One pass of Audit; nothing if bytes changed or were lost meanwhile.
  // `bad_granules` grows.
  struct AuditPass;
  Result<std::optional<Audited>> AuditOnce(
      uint64_t& bad_granules, const std::function<void(uint64_t)>& on_bytes);
  Result<> AuditGranule(uint64_t granule, AuditPass& pass);
  // A description of its own, with its locks. REQUIRES: not broken.
  Result<UniqueFd> OpenShared();
  // Hashes the whole file and seals it. REQUIRES: all slabs are locked.
  Result<> HashAndSeal(const BootId& boot);
  // REQUIRES: all slabs are locked, and hashed since Losses() was `losses`.
  Result<> SyncAndSeal(const BootId& boot, uint64_t losses);
  // kStale unless every granule is there and no generation is another one.
  Result<> CheckAllThere(std::span<const uint32_t> generations) const;
  Error Broken(std::string_view why);
  Error Absent(uint64_t granule) const;

  const std::shared_ptr<CacheParts> parts_;
  CacheDisk& disk_;
  const ObjectFiles files_;
  const MetaLayout layout_;
  const ContentId id_;
  const std::string name_;  // for messages
  // Another namespace's object: its bytes count while they are verified.
  const bool foreign_;
  SlabLocks locks_;
  HashedSet hashed_;
  DataMapping mapping_;
  // Of each slab, the generation that its hashes are of.
  const std::unique_ptr<std::atomic<uint32_t>[]> generations_;
  std::atomic<bool> broken_{false};
  // Over the question and what follows from its answer, which the kernel gives
  // once: a second asker must not be told "no" before the hashes are forgotten.
  Mutex loss_mutex_;
  std::atomic<uint64_t> losses_{0};  // write-backs known to have failed
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_OPEN_CACHE_FILE_H_
