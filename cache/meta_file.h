// MetaFile: an object's `meta` in the cache, mapped: a fixed header, the state,
// a recency and a generation per slab, an entry per granule. The bytes are in
// cache/LAYOUT.md; a change of them needs a new kMetaVersion.
//
// Thread-safety: safe for concurrent use, also between processes.

#ifndef WEIGHTFS_CACHE_META_FILE_H_
#define WEIGHTFS_CACHE_META_FILE_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "cache/cache_disk.h"
#include "cache/fault_guard.h"
#include "cache/object_cache.h"
#include "formats/base/result.h"

namespace weightfs {

inline constexpr uint32_t kMetaVersion = 2;
inline constexpr size_t kMetaHeaderSize = 256;  // bytes
inline constexpr size_t kMetaFixedSize = 128;   // of those, never change
// `meta` is 1/16384 of the object; a listing cannot make it fill the disk.
inline constexpr uint64_t kMaxObjectSize = uint64_t{4} << 40;  // bytes

// What the object as a whole is. Transitions:
//   kOpen → kSealed    whole-file hash right, after fdatasync, boot id stored
//   kSealed → kOpen    before a slab is evicted, or a granule is wiped
//   any → kPoisoned    whole-file hash wrong; the object is made anew
// Beside it, `verified`: the whole-file hash was right, and no byte was lost
// since. Whoever makes a granule absent takes it back first.
enum class MetaState : uint32_t { kOpen = 0, kSealed = 1, kPoisoned = 2 };

// Where things are in the `meta` of an object of `object_size` bytes.
struct MetaLayout {
  // REQUIRES: object_size <= kMaxObjectSize.
  static MetaLayout For(uint64_t object_size);

  uint64_t object_size;
  uint64_t granules;
  uint64_t slabs;
  uint64_t entries_offset;  // of the first granule's u64
  uint64_t file_size;       // a multiple of 4096
};

using BootId = std::array<std::byte, 16>;

// The header of a new object, whose bytes come from the origin of the namespace
// `owner` (NamespaceNumber). REQUIRES: `id` may be cached (see ObjectPath).
std::array<std::byte, kMetaHeaderSize> EncodeMetaHeader(const ContentId& id,
                                                        uint64_t object_size,
                                                        uint64_t owner);
// kCorrupt if `header` is not that of an object with this id and size, or if
// the object is poisoned. The message names the field.
Result<> CheckMetaHeader(std::span<const std::byte> header, const ContentId& id,
                         uint64_t object_size);

// The entry of a granule that holds `bytes`: XXH3-64, 1 in place of 0.
uint64_t GranuleHash(std::span<const std::byte> bytes);

class MetaFile {
 public:
  // `fd` is not kept. kCorrupt as CheckMetaHeader, or for another file size.
  static Result<std::unique_ptr<MetaFile>> Open(int fd, const ContentId& id,
                                                uint64_t object_size,
                                                const std::string& name);

  const MetaLayout& layout() const { return layout_; }
  // The file broke under the mapping: nothing read after that counts. Check it
  // after reading.
  bool faulted() const { return mapping_->faulted(); }

  // 0: absent. What was written to `data` before Publish is seen after this.
  uint64_t Entry(uint64_t granule) const {
    return EntryRef(granule).load(std::memory_order_acquire);
  }
  void Publish(uint64_t granule, uint64_t hash) {
    EntryRef(granule).store(hash, std::memory_order_release);
  }
  // Makes the granule absent unless it has another entry than `seen` by now.
  void Wipe(uint64_t granule, uint64_t seen);
  // Changes before published bytes of the slab may become others: a hash from
  // an earlier generation proves nothing.
  uint32_t Generation(uint64_t slab) const { return SlabRef(slab, 1).load(); }
  void StartGeneration(uint64_t slab) { SlabRef(slab, 1).fetch_add(1); }

  MetaState state() const;
  void Poison();
  // Sealed in the boot that `boot` names.
  bool IsSealed(const BootId& boot) const;
  void Seal(const BootId& boot);
  void Unseal();
  bool verified() const;
  void SetVerified(bool verified);
  // The namespace whose origin's bytes it holds; see NamespaceNumber.
  uint64_t owner() const;

  // Writes the slab's part of the file to the disk: recency, generation,
  // entries, and the header. 0 or -errno.
  int Sync(CacheDisk& disk, uint64_t slab);

  // When the slab was last used, in minutes of Unix time.
  void Touch(uint64_t slab, uint32_t minutes);
  uint32_t Recency(uint64_t slab) const;

 private:
  MetaFile(std::unique_ptr<GuardedMapping> mapping, const MetaLayout& layout)
      : mapping_(std::move(mapping)), layout_(layout) {}

  std::atomic_ref<uint64_t> EntryRef(uint64_t granule) const;
  std::atomic_ref<uint32_t> HeaderWord(size_t offset) const;
  // 0: the slab's recency, 1: its generation.
  std::atomic_ref<uint32_t> SlabRef(uint64_t slab, size_t field) const;

  const std::unique_ptr<GuardedMapping> mapping_;
  const MetaLayout layout_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_META_FILE_H_
