#include "formats/npy.h"

#include <cstdint>
#include <utility>

#include "formats/writer.h"

namespace weightfs {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kPrefix = 10;  // magic, version, u16 length
// NumPy leaves room for the first dimension to grow to this many digits.
constexpr size_t kGrowthDigits = 21;
constexpr size_t kMaxNpyRank = 64;  // NPY_MAXDIMS

}  // namespace

std::string_view NpyDescr(DType dtype) {
  switch (dtype) {
    case DType::kBool:
      return "|b1";
    case DType::kU8:
      return "|u1";
    case DType::kI8:
      return "|i1";
    case DType::kI16:
      return "<i2";
    case DType::kU16:
      return "<u2";
    case DType::kF16:
      return "<f2";
    case DType::kI32:
      return "<i4";
    case DType::kU32:
      return "<u4";
    case DType::kF32:
      return "<f4";
    case DType::kC64:
      return "<c8";
    case DType::kF64:
      return "<f8";
    case DType::kI64:
      return "<i8";
    case DType::kU64:
      return "<u8";
    case DType::kC128:
      return "<c16";
    // NumPy has none of these: raw bytes of their size, as np.save writes
    // ml_dtypes' bfloat16; `.view()` brings them back.
    case DType::kBF16:
      return "<V2";
    case DType::kF8E5M2:
    case DType::kF8E4M3:
    case DType::kF8E8M0:
    case DType::kF8E4M3Fnuz:
    case DType::kF8E5M2Fnuz:
      return "|V1";
    case DType::kC32:
      return "|V4";
    case DType::kF4:
    case DType::kF6E2M3:
    case DType::kF6E3M2:
    default:  // block types
      return {};
  }
  return {};
}

Result<std::string> NpyHeader(DType dtype, const std::vector<uint64_t>& shape) {
  const std::string_view descr = NpyDescr(dtype);
  if (descr.empty()) return CheckFormatHolds(Format::kNpy, dtype).error();
  if (shape.size() > kMaxNpyRank) {
    return MakeError(Code::kUnsupported,
                     "NumPy has {} dimensions at most, this tensor {}",
                     kMaxNpyRank, shape.size());
  }
  std::string text = fmt::format(
      "{{'descr': '{}', 'fortran_order': False, 'shape': ({}{}), }}", descr,
      fmt::join(shape, ", "), shape.size() == 1 ? "," : "");
  if (!shape.empty()) {
    text.append(kGrowthDigits - fmt::format("{}", shape[0]).size(), ' ');
  }
  // An aligned header still gets 64 bytes more, as from NumPy.
  text.append(kAlignment - (kPrefix + text.size() + 1) % kAlignment, ' ');
  text += '\n';

  std::string header("\x93NUMPY\x01\x00", 8);
  header += static_cast<char>(text.size() & 0xff);
  header += static_cast<char>(text.size() >> 8);
  header += text;
  return header;
}

Result<std::vector<Segment>> WriteNpy(const TensorInfo& tensor) {
  ASSIGN_OR_RETURN(std::string header, NpyHeader(tensor.dtype, tensor.shape));
  ASSIGN_OR_RETURN(auto data, DenseSegments(tensor));
  std::vector<Segment> segments;
  segments.push_back(Literal(std::move(header)));
  segments.insert(segments.end(), data.begin(), data.end());
  return segments;
}

}  // namespace weightfs
