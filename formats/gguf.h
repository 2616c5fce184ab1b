// GGUF, read: versions 2 and 3, little-endian. Spec: formats/gguf.md (pairs of
// metadata, tensor descriptions, data).

#ifndef WEIGHTFS_FORMATS_GGUF_H_
#define WEIGHTFS_FORMATS_GGUF_H_

#include <cstdint>

#include "formats/base/byte_source.h"
#include "formats/base/result.h"
#include "formats/tensor_index.h"

namespace weightfs {

// The first read; each next one is twice as long, or as long as what is known
// to come, up to kMaxGgufRead. One such buffer is all that the header takes.
inline constexpr uint64_t kGgufProbe = 256 * 1024;
inline constexpr uint64_t kMaxGgufRead = 8 * 1024 * 1024;
// Bytes before the data, at most.
inline constexpr uint64_t kMaxGgufHeader = 256 * 1024 * 1024;
// Tensors and pairs of one file, and bytes of their names, at most.
inline constexpr uint64_t kMaxGgufTensors = 1 << 20;
inline constexpr uint64_t kMaxGgufPairs = 1 << 14;
inline constexpr uint64_t kMaxGgufName = 1024;
inline constexpr uint64_t kMaxGgufKey = 4096;
inline constexpr uint32_t kMaxGgufDims = 4;  // as ggml

// What of the pairs becomes metadata, as text: strings of so many bytes, arrays
// of so many items, and so many bytes in all, keys included.
inline constexpr uint64_t kMaxGgufShownString = 64 * 1024;
inline constexpr uint64_t kMaxGgufShownItems = 16;
inline constexpr uint64_t kMaxGgufShown = 1024 * 1024;

// Reads all before the data and checks it against the file's size: kCorrupt
// names the pair or the tensor, the field and the offset; kUnsupported is
// another version or byte order, a tensor type that is not known, or more than
// the limits above. Shapes are row-major, the last dimension innermost: GGUF's
// own order reversed. Reads no tensor data but what lies behind the header in
// the last read.
Result<TensorIndex> ReadGguf(ByteSource& source);

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_GGUF_H_
