#include "formats/dtype.h"

#include <array>
#include <cstddef>

namespace weightfs {
namespace {

struct Row {
  DType dtype;
  uint32_t bits;
  std::string_view name;
};

// In the order of the enum, which is also safetensors' own.
constexpr std::array<Row, 22> kRows = {{
    {DType::kBool, 8, "BOOL"},
    {DType::kF4, 4, "F4"},
    {DType::kF6E2M3, 6, "F6_E2M3"},
    {DType::kF6E3M2, 6, "F6_E3M2"},
    {DType::kU8, 8, "U8"},
    {DType::kI8, 8, "I8"},
    {DType::kF8E5M2, 8, "F8_E5M2"},
    {DType::kF8E4M3, 8, "F8_E4M3"},
    {DType::kF8E8M0, 8, "F8_E8M0"},
    {DType::kF8E4M3Fnuz, 8, "F8_E4M3FNUZ"},
    {DType::kF8E5M2Fnuz, 8, "F8_E5M2FNUZ"},
    {DType::kI16, 16, "I16"},
    {DType::kU16, 16, "U16"},
    {DType::kF16, 16, "F16"},
    {DType::kBF16, 16, "BF16"},
    {DType::kI32, 32, "I32"},
    {DType::kU32, 32, "U32"},
    {DType::kF32, 32, "F32"},
    {DType::kC64, 64, "C64"},
    {DType::kF64, 64, "F64"},
    {DType::kI64, 64, "I64"},
    {DType::kU64, 64, "U64"},
}};

constexpr std::array<DType, kRows.size()> MakeAll() {
  std::array<DType, kRows.size()> all{};
  for (size_t i = 0; i < all.size(); ++i) all[i] = kRows[i].dtype;
  return all;
}
constexpr auto kAllDTypes = MakeAll();

constexpr bool RowsFollowTheEnum() {
  for (size_t i = 0; i < kRows.size(); ++i) {
    if (static_cast<size_t>(kRows[i].dtype) != i) return false;
  }
  return true;
}
static_assert(RowsFollowTheEnum());

const Row& RowOf(DType dtype) { return kRows.at(static_cast<size_t>(dtype)); }

}  // namespace

std::span<const DType> AllDTypes() { return kAllDTypes; }

uint32_t DTypeBits(DType dtype) { return RowOf(dtype).bits; }

std::string_view DTypeName(DType dtype) { return RowOf(dtype).name; }

std::optional<DType> DTypeFromName(std::string_view name) {
  for (const Row& row : kRows) {
    if (row.name == name) return row.dtype;
  }
  return std::nullopt;
}

}  // namespace weightfs
