// DType: the element types that weightfs knows. Plain ones are named as
// safetensors names them, GGUF's block types as ggml does.
//
// A block type has no elements of its own: a block of some bytes holds a fixed
// number of values, which share scales. A row (the last dimension) is a whole
// number of blocks.

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
  kC128 = 22,  // two doubles
  kC32 = 23,   // two halves
  // 24 to 31: room for more plain types. From here on, block types.
  kQ40 = 32,
  kQ41 = 33,
  kQ50 = 34,
  kQ51 = 35,
  kQ80 = 36,
  kQ81 = 37,
  kQ2K = 38,
  kQ3K = 39,
  kQ4K = 40,
  kQ5K = 41,
  kQ6K = 42,
  kQ8K = 43,
  kIq2Xxs = 44,
  kIq2Xs = 45,
  kIq3Xxs = 46,
  kIq1S = 47,
  kIq4Nl = 48,
  kIq3S = 49,
  kIq2S = 50,
  kIq4Xs = 51,
  kIq1M = 52,
  kTq10 = 53,
  kTq20 = 54,
  kMxfp4 = 55,
  kNvfp4 = 56,
  kQ10 = 57,
  kQ20 = 58,
};

// Every dtype, in the order above.
std::span<const DType> AllDTypes();
// Bits of one element: 4, 6, 8, 16, 32, 64 or 128; 0 for a block type.
uint32_t DTypeBits(DType dtype);
bool IsBlockDType(DType dtype);
// Values in one block; 1 for a plain type.
uint32_t BlockElements(DType dtype);
// Bytes of one block, or of one element of a plain type: 0 if that is less than
// a byte.
uint32_t BlockBytes(DType dtype);
// "F32", "BF16", "F8_E4M3", …: safetensors' own names, "C128" and "C32" in
// their manner, "Q4_0", "IQ2_XXS", … as ggml has them; case-sensitive.
std::string_view DTypeName(DType dtype);
std::optional<DType> DTypeFromName(std::string_view name);

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_DTYPE_H_
