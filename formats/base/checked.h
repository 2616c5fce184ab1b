// Arithmetic on sizes and offsets that come from files: every overflow is told.

#ifndef WEIGHTFS_FORMATS_BASE_CHECKED_H_
#define WEIGHTFS_FORMATS_BASE_CHECKED_H_

#include <cstdint>
#include <optional>

namespace weightfs {

inline std::optional<uint64_t> CheckedAdd(uint64_t a, uint64_t b) {
  uint64_t sum = 0;
  if (__builtin_add_overflow(a, b, &sum)) return std::nullopt;
  return sum;
}

inline std::optional<uint64_t> CheckedMul(uint64_t a, uint64_t b) {
  uint64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

// True if [offset, offset + length) lies in [0, size).
inline bool RangeFits(uint64_t offset, uint64_t length, uint64_t size) {
  return offset <= size && length <= size - offset;
}

// REQUIRES: alignment is a power of two and the result fits 64 bits.
inline uint64_t AlignUp(uint64_t value, uint64_t alignment) {
  return (value + alignment - 1) & ~(alignment - 1);
}

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_BASE_CHECKED_H_
