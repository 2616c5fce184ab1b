// Gather: a strided tensor's elements as dense row-major bytes.

#ifndef WEIGHTFS_FORMATS_GATHER_H_
#define WEIGHTFS_FORMATS_GATHER_H_

#include <cstdint>
#include <vector>

#include "formats/base/result.h"
#include "formats/segment.h"
#include "formats/tensor_index.h"

namespace weightfs {

// The bytes [offset, offset + length) of `ranges`, laid end to end. REQUIRES:
// they hold that many.
std::vector<SourceRange> SliceRanges(const std::vector<SourceRange>& ranges,
                                     uint64_t offset, uint64_t length);

// The dense bytes of a strided tensor: ranges of its storage where it is
// contiguous or made of long runs, else one Transform that reads no more of the
// storage than each read needs (but for gaps of up to kMaxGatherGap bytes).
// kCorrupt if it reaches past its storage, kUnsupported for a dtype of less
// than a byte, or of blocks, that is not contiguous.
Result<std::vector<Segment>> GatherSegments(const TensorInfo& tensor);

// Bytes between two needed ones that are read along: about what one more range
// costs in bookkeeping.
inline constexpr uint64_t kMaxGatherGap = 64;

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_GATHER_H_
