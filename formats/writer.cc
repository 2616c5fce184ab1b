#include "formats/writer.h"

#include <array>
#include <cstddef>

#include "formats/base/checked.h"
#include "formats/gather.h"
#include "formats/npy.h"
#include "formats/pt.h"
#include "formats/safetensors.h"
#include "formats/text.h"

namespace weightfs {
namespace {

struct FormatRow {
  Format format;
  std::string_view name;
  std::string_view extension;
};

// In the order of the enum.
constexpr std::array<FormatRow, 4> kFormats = {{
    {Format::kRaw, "raw", ".bin"},
    {Format::kNpy, "npy", ".npy"},
    {Format::kPt, "pt", ".pt"},
    {Format::kSafetensors, "safetensors", ".safetensors"},
}};
constexpr std::array<Format, 4> kAllFormats = {
    Format::kRaw, Format::kNpy, Format::kPt, Format::kSafetensors};

const FormatRow& RowOf(Format format) {
  return kFormats.at(static_cast<size_t>(format));
}

}  // namespace

std::span<const Format> AllFormats() { return kAllFormats; }

std::string_view FormatName(Format format) { return RowOf(format).name; }

std::optional<Format> FormatFromName(std::string_view name) {
  for (const FormatRow& row : kFormats) {
    if (row.name == name) return row.format;
  }
  return std::nullopt;
}

std::string_view FormatExtension(Format format) {
  return RowOf(format).extension;
}

Result<> CheckFormatHolds(Format format, DType dtype) {
  const auto unless = [&](bool holds, std::string_view why) -> Result<> {
    if (holds) return {};
    return MakeError(Code::kUnsupported, "{} cannot hold {}: {}",
                     FormatName(format), DTypeName(dtype), why);
  };
  switch (format) {
    case Format::kNpy:
      return unless(!NpyDescr(dtype).empty(),
                    IsBlockDType(dtype)
                        ? "NumPy has no quantised blocks"
                        : "NumPy has no elements of less than a byte");
    case Format::kPt:
      return unless(PtHolds(dtype), "torch has no such dtype");
    case Format::kSafetensors:
      return unless(SafetensorsHolds(dtype), "the format has no name for it");
    case Format::kRaw:
      return {};
  }
  return {};
}

Result<std::vector<Segment>> WriteTensor(Format format,
                                         const TensorInfo& tensor) {
  RETURN_IF_ERROR(CheckFormatHolds(format, tensor.dtype));
  switch (format) {
    case Format::kRaw:
      return DenseSegments(tensor);
    case Format::kNpy:
      return WriteNpy(tensor);
    case Format::kPt:
      return WritePt(tensor);
    case Format::kSafetensors:
      return WriteSafetensors(tensor);
  }
  return MakeError(Code::kInvalid, "no such format");
}

Result<std::vector<Segment>> DenseSegments(const TensorInfo& tensor) {
  if (!tensor.dense()) return GatherSegments(tensor);
  ASSIGN_OR_RETURN(const uint64_t size, DenseSize(tensor.dtype, tensor.shape));
  std::vector<Segment> segments;
  std::optional<uint64_t> total = 0;
  for (const SourceRange& range : tensor.data) {
    if (range.length == 0) continue;
    segments.emplace_back(SourceSegment{range});
    total = total ? CheckedAdd(*total, range.length) : total;
  }
  if (total != size) {
    return MakeError(Code::kInvalid,
                     "tensor {}: its ranges do not hold the {} bytes of its "
                     "shape",
                     QuoteName(tensor.name), size);
  }
  return segments;
}

}  // namespace weightfs
