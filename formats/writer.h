// Writers: one tensor as a file of its own, in each format. The bytes are a
// function of the tensor's content and name and of the writer's version alone.
// The table dtype × format is in formats/README.md.

#ifndef WEIGHTFS_FORMATS_WRITER_H_
#define WEIGHTFS_FORMATS_WRITER_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "formats/base/result.h"
#include "formats/dtype.h"
#include "formats/segment.h"
#include "formats/tensor_index.h"

namespace weightfs {

// The numeric values are stable: node ids hold them.
enum class Format : uint8_t {
  kRaw = 0,
  kNpy = 1,
  kPt = 2,
  kSafetensors = 3,
};

std::span<const Format> AllFormats();
// "raw", "npy", "pt", "safetensors": the folder under tensors/ and the CLI's
// word.
std::string_view FormatName(Format format);
std::optional<Format> FormatFromName(std::string_view name);
// ".bin", ".npy", ".pt", ".safetensors".
std::string_view FormatExtension(Format format);

// OK, or kUnsupported with the reason if `format` has no way to hold `dtype`.
Result<> CheckFormatHolds(Format format, DType dtype);

// The segments of the file; kUnsupported as CheckFormatHolds says.
Result<std::vector<Segment>> WriteTensor(Format format,
                                         const TensorInfo& tensor);

// The tensor's bytes, dense and row-major: its ranges as they are, or gathered
// if it is strided (kUnsupported for strided sub-byte and block dtypes).
Result<std::vector<Segment>> DenseSegments(const TensorInfo& tensor);

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_WRITER_H_
