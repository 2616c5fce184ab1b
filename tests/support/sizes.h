// The sizes that the tests speak in: bytes.

#ifndef WEIGHTFS_TESTS_SUPPORT_SIZES_H_
#define WEIGHTFS_TESTS_SUPPORT_SIZES_H_

#include <cstdint>

#include "cache/object_cache.h"

namespace weightfs {

inline constexpr uint64_t kG = kGranuleSize;
inline constexpr uint64_t kMiB = uint64_t{1} << 20;
inline constexpr uint64_t kSmall = 2 * kG + 1000;  // three granules

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_SUPPORT_SIZES_H_
