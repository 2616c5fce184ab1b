// TestEvictor: evicts whole slabs of one object when a test says so.
//
// Thread-safety: not thread-safe.

#ifndef WEIGHTFS_TESTS_CACHE_TEST_EVICTOR_H_
#define WEIGHTFS_TESTS_CACHE_TEST_EVICTOR_H_

#include <memory>
#include <string>

#include "cache/cache_folder.h"
#include "cache/slab_evictor.h"

namespace weightfs {

class TestEvictor {
 public:
  // `object` is relative to the cache folder.
  TestEvictor(const std::string& cache_folder, const std::string& object,
              CacheDisk& disk = CacheDisk::System()) {
    auto folder = CacheFolder::OpenPlain(cache_folder);
    if (!folder.has_value()) return;
    folder_ = std::move(folder).value();
    auto evictor = SlabEvictor::Open(*folder_, disk, object);
    if (evictor.has_value()) evictor_ = std::move(evictor).value();
  }

  bool valid() const { return evictor_ != nullptr; }

  // False if somebody pinned the slab, or the disk failed.
  bool Evict(uint64_t slab) { return evictor_->Evict(slab).has_value(); }

 private:
  std::unique_ptr<CacheFolder> folder_;
  std::unique_ptr<SlabEvictor> evictor_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_CACHE_TEST_EVICTOR_H_
