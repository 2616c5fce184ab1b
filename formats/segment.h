// Segment: a stretch of a virtual file. Every file that weightfs shows is an
// ordered list of segments: literal bytes that a writer made, a range of a
// source object as it is, or a range of source objects through a function.
//
// Values are immutable and cheap to copy.

#ifndef WEIGHTFS_FORMATS_SEGMENT_H_
#define WEIGHTFS_FORMATS_SEGMENT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "formats/base/result.h"

namespace weightfs {

// Bytes of one source object. `object` is an ordinal in the object list of the
// TensorIndex (or weight set) that the range belongs to.
struct SourceRange {
  uint32_t object = 0;
  uint64_t offset = 0;  // bytes
  uint64_t length = 0;  // bytes
  bool operator==(const SourceRange&) const = default;
};

// A seekable function from source ranges to bytes (gather, cast, byte swap,
// dequantise). Implementations are immutable and safe for concurrent use.
class Transform {
 public:
  virtual ~Transform() = default;
  // Bytes of output.
  virtual uint64_t size() const = 0;
  // The source ranges that output [offset, offset + length) needs, in the order
  // in which Apply wants them. REQUIRES: the range lies in [0, size()).
  virtual std::vector<SourceRange> Inputs(uint64_t offset,
                                          uint64_t length) const = 0;
  // Fills `out` with the output from `offset`; inputs[i] holds the bytes of the
  // i-th range of Inputs(offset, out.size()).
  virtual void Apply(uint64_t offset,
                     std::span<const std::span<const std::byte>> inputs,
                     std::span<std::byte> out) const = 0;
};

struct LiteralSegment {
  std::shared_ptr<const std::string> bytes;
};
struct SourceSegment {
  SourceRange range;
};
struct TransformSegment {
  std::shared_ptr<const Transform> transform;
};

using Segment = std::variant<LiteralSegment, SourceSegment, TransformSegment>;

// Bytes that the segment adds to its file.
uint64_t SegmentSize(const Segment& segment);
Segment Literal(std::string bytes);

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_SEGMENT_H_
