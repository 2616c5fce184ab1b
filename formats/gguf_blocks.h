// The blocks of GGUF's quantised types: what values their bytes mean. Layouts:
// formats/gguf.md. Pure functions.

#ifndef WEIGHTFS_FORMATS_GGUF_BLOCKS_H_
#define WEIGHTFS_FORMATS_GGUF_BLOCKS_H_

#include <cstddef>
#include <cstdint>

#include "formats/dtype.h"

namespace weightfs {

inline constexpr size_t kMaxBlockElements = 256;
inline constexpr size_t kMaxBlockBytes = 292;

// Fills BlockElements() floats from a block of BlockBytes() bytes.
using BlockDecoder = void (*)(const uint8_t* block, float* values);

// Null for a plain type, and for block types whose values nothing tells. The
// floats come by the same operations, in the same order, as those of the
// reference implementation: no sum is fused with a product.
BlockDecoder BlockDecoderOf(DType dtype);

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_GGUF_BLOCKS_H_
