// DType: the element types that weightfs knows, named as safetensors names
// them, and what each is called in other formats.

#ifndef WEIGHTFS_FORMATS_DTYPE_H_
#define WEIGHTFS_FORMATS_DTYPE_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace weightfs {

// The numeric values are stable: they are stored.
enum class DType : uint8_t {
  kBool = 0,
  kF4 = 1,  // two per byte, the first in the low nibble
  kF6E2M3 = 2,
  kF6E3M2 = 3,
  kU8 = 4,
  kI8 = 5,
  kF8E5M2 = 6,
  kF8E4M3 = 7,
  kF8E8M0 = 8,
  kF8E4M3Fnuz = 9,
  kF8E5M2Fnuz = 10,
  kI16 = 11,
  kU16 = 12,
  kF16 = 13,
  kBF16 = 14,
  kI32 = 15,
  kU32 = 16,
  kF32 = 17,
  kC64 = 18,
  kF64 = 19,
  kI64 = 20,
  kU64 = 21,
};

// Every dtype, in the order above.
std::span<const DType> AllDTypes();
// Bits of one element: 4, 6, 8, 16, 32 or 64.
uint32_t DTypeBits(DType dtype);
// "F32", "BF16", "F8_E4M3", …: safetensors' own names, case-sensitive.
std::string_view DTypeName(DType dtype);
std::optional<DType> DTypeFromName(std::string_view name);

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_DTYPE_H_
