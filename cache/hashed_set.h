// HashedSet: which granules of an object this process has hashed. A bit each.
//
// Thread-safety: safe for concurrent use.

#ifndef WEIGHTFS_CACHE_HASHED_SET_H_
#define WEIGHTFS_CACHE_HASHED_SET_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

namespace weightfs {

class HashedSet {
 public:
  explicit HashedSet(uint64_t granules)
      : words_(granules / 64 + 1),
        bits_(std::make_unique<std::atomic<uint64_t>[]>(words_)) {}

  bool Has(uint64_t granule) const {
    const uint64_t word = bits_[granule / 64].load(std::memory_order_acquire);
    return (word >> (granule % 64) & 1) != 0;
  }
  void Add(uint64_t granule) {
    bits_[granule / 64].fetch_or(uint64_t{1} << (granule % 64));
  }
  void Remove(uint64_t granule) {
    bits_[granule / 64].fetch_and(~(uint64_t{1} << (granule % 64)),
                                  std::memory_order_acq_rel);
  }
  // REQUIRES: multiples of 64, but for the object's end.
  void RemoveRange(uint64_t begin, uint64_t end) {
    for (uint64_t i = begin / 64; i < std::min((end + 63) / 64, words_); ++i) {
      bits_[i].store(0);
    }
  }

 private:
  const uint64_t words_;
  const std::unique_ptr<std::atomic<uint64_t>[]> bits_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_HASHED_SET_H_
