// DataMapping: an object's `data` in the cache, mapped at the first use, for
// LentBytes. Nobody but the kernel may read through it: see lent_bytes.h.
//
// Thread-safety: safe for concurrent use.

#ifndef WEIGHTFS_CACHE_DATA_MAPPING_H_
#define WEIGHTFS_CACHE_DATA_MAPPING_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "formats/base/mutex.h"

namespace weightfs {

class DataMapping {
 public:
  DataMapping() = default;
  ~DataMapping();
  DataMapping(const DataMapping&) = delete;
  DataMapping& operator=(const DataMapping&) = delete;

  // All `size` bytes of the file; the same each time. Empty if they cannot be
  // mapped here.
  std::span<const std::byte> Of(int fd, uint64_t size) EXCLUDES(mutex_);

 private:
  Mutex mutex_;  // a leaf
  // Nothing: not tried yet. Empty: in vain.
  std::optional<std::span<std::byte>> mapped_ GUARDED_BY(mutex_);
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_DATA_MAPPING_H_
