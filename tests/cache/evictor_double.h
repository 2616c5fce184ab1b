// EvictorDouble: evicts slabs of one object as cache/LAYOUT.md says that an
// evictor does, on an open file description and a mapping of its own.
//
// Thread-safety: not thread-safe.

#ifndef WEIGHTFS_TESTS_CACHE_EVICTOR_DOUBLE_H_
#define WEIGHTFS_TESTS_CACHE_EVICTOR_DOUBLE_H_

#include <fcntl.h>

#include <algorithm>
#include <memory>
#include <string>

#include "cache/cache_disk.h"
#include "cache/meta_file.h"
#include "cache/slab_locks.h"
#include "formats/base/unique_fd.h"

namespace weightfs {

class EvictorDouble {
 public:
  EvictorDouble(const std::string& object_folder, const ContentId& id,
                uint64_t size)
      : data_(::open((object_folder + "/data").c_str(), O_RDWR | O_CLOEXEC)) {
    const UniqueFd meta(
        ::open((object_folder + "/meta").c_str(), O_RDWR | O_CLOEXEC));
    auto opened = MetaFile::Open(meta.get(), id, size, "meta");
    if (opened.has_value()) meta_ = std::move(opened).value();
  }

  bool valid() const { return data_.valid() && meta_ != nullptr; }

  // False if somebody pinned the slab.
  bool Evict(uint64_t slab) {
    const uint64_t start = slab * kSlabSize;
    if (SetOfdLock(data_.get(), F_WRLCK, start, kSlabSize) != 0) return false;
    constexpr uint64_t kPerSlab = kSlabSize / kGranuleSize;
    const uint64_t end =
        std::min((slab + 1) * kPerSlab, meta_->layout().granules);
    meta_->StartGeneration(slab);
    for (uint64_t g = slab * kPerSlab; g < end; ++g) meta_->Publish(g, 0);
    CacheDisk::System().Punch(data_.get(), start, kSlabSize);
    SetOfdLock(data_.get(), F_UNLCK, start, kSlabSize);
    return true;
  }

 private:
  UniqueFd data_;
  std::unique_ptr<MetaFile> meta_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_CACHE_EVICTOR_DOUBLE_H_
