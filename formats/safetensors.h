// safetensors, read and written. Spec: formats/safetensors.md (8-byte length,
// JSON header, data).

#ifndef WEIGHTFS_FORMATS_SAFETENSORS_H_
#define WEIGHTFS_FORMATS_SAFETENSORS_H_

#include <cstdint>
#include <vector>

#include "formats/base/byte_source.h"
#include "formats/base/result.h"
#include "formats/dtype.h"
#include "formats/segment.h"
#include "formats/tensor_index.h"

namespace weightfs {

// The largest header that is read, as in the reference implementation.
inline constexpr uint64_t kMaxSafetensorsHeader = 100'000'000;
// The first read: covers the whole header of most files.
inline constexpr uint64_t kSafetensorsProbe = 256 * 1024;
// Tensors and metadata keys of one file, and dimensions of all its tensors,
// that are read at most: they bound the memory that a header can cost.
inline constexpr uint64_t kMaxSafetensorsEntries = 1 << 20;
inline constexpr uint64_t kMaxSafetensorsDims = 1 << 22;

// True if the format has a name for it.
bool SafetensorsHolds(DType dtype);

// Where the header ends, by the first 8 bytes. kCorrupt: the file cannot hold
// so much, or nobody reads it.
Result<uint64_t> SafetensorsHeaderEnd(ByteSource& source);

// Reads the header (one read of at most kSafetensorsProbe, a second one for
// what is left of a larger header) and checks every rule of the format against
// the source's size. kCorrupt names the tensor, the field and the offset;
// kUnsupported is a dtype that is not known, or more entries than the limits
// above. Reads no tensor data.
Result<TensorIndex> ReadSafetensors(ByteSource& source);

// Whether safetensors has a name for `dtype`.
bool SafetensorsHolds(DType dtype);

// A file with this one tensor, under its own name. kUnsupported for a name that
// is no UTF-8 or is the format's own "__metadata__", or for the dtype.
Result<std::vector<Segment>> WriteSafetensors(const TensorInfo& tensor);

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_SAFETENSORS_H_
