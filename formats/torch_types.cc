#include "formats/torch_types.h"

#include <array>

namespace weightfs {
namespace {

struct TorchRow {
  DType dtype;
  TorchType type;
};

constexpr std::array<TorchRow, 22> kTorchRows = {{
    {DType::kBool, {"BoolStorage", "bool"}},
    {DType::kU8, {"ByteStorage", "uint8"}},
    {DType::kI8, {"CharStorage", "int8"}},
    {DType::kI16, {"ShortStorage", "int16"}},
    {DType::kF16, {"HalfStorage", "float16"}},
    {DType::kBF16, {"BFloat16Storage", "bfloat16"}},
    {DType::kI32, {"IntStorage", "int32"}},
    {DType::kF32, {"FloatStorage", "float32"}},
    {DType::kC64, {"ComplexFloatStorage", "complex64"}},
    {DType::kF64, {"DoubleStorage", "float64"}},
    {DType::kI64, {"LongStorage", "int64"}},
    {DType::kC128, {"ComplexDoubleStorage", "complex128"}},
    {DType::kU16, {{}, "uint16"}},
    {DType::kU32, {{}, "uint32"}},
    {DType::kU64, {{}, "uint64"}},
    {DType::kF8E5M2, {{}, "float8_e5m2"}},
    {DType::kF8E4M3, {{}, "float8_e4m3fn"}},
    {DType::kF8E8M0, {{}, "float8_e8m0fnu"}},
    {DType::kF8E4M3Fnuz, {{}, "float8_e4m3fnuz"}},
    {DType::kF8E5M2Fnuz, {{}, "float8_e5m2fnuz"}},
    {DType::kF4, {{}, "float4_e2m1fn_x2"}},  // one element is a pair
    {DType::kC32, {{}, "complex32"}},
}};

}  // namespace

TorchType TorchTypeOf(DType dtype) {
  for (const TorchRow& row : kTorchRows) {
    if (row.dtype == dtype) return row.type;
  }
  return {};
}

std::optional<DType> DTypeOfTorchStorage(std::string_view storage) {
  if (storage == "QInt8Storage") return DType::kI8;
  if (storage == "QUInt8Storage") return DType::kU8;
  if (storage == "QInt32Storage") return DType::kI32;
  for (const TorchRow& row : kTorchRows) {
    if (!storage.empty() && row.type.storage == storage) return row.dtype;
  }
  return std::nullopt;
}

std::optional<DType> DTypeOfTorchName(std::string_view name) {
  for (const TorchRow& row : kTorchRows) {
    if (row.type.dtype == name) return row.dtype;
  }
  return std::nullopt;
}

}  // namespace weightfs
