#include "formats/dtype.h"

#include <array>
#include <cstddef>

namespace weightfs {
namespace {

struct Row {
  DType dtype;
  uint32_t bits;  // of an element; 0: a block type
  std::string_view name;
  uint32_t block_elements = 1;
  uint32_t block_bytes = bits / 8;
};

// In the order of the enum; that of the first 22 is safetensors' own.
constexpr std::array<Row, 51> kRows = {{
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
    {DType::kC128, 128, "C128"},
    {DType::kC32, 32, "C32"},
    {DType::kQ40, 0, "Q4_0", 32, 18},
    {DType::kQ41, 0, "Q4_1", 32, 20},
    {DType::kQ50, 0, "Q5_0", 32, 22},
    {DType::kQ51, 0, "Q5_1", 32, 24},
    {DType::kQ80, 0, "Q8_0", 32, 34},
    {DType::kQ81, 0, "Q8_1", 32, 36},
    {DType::kQ2K, 0, "Q2_K", 256, 84},
    {DType::kQ3K, 0, "Q3_K", 256, 110},
    {DType::kQ4K, 0, "Q4_K", 256, 144},
    {DType::kQ5K, 0, "Q5_K", 256, 176},
    {DType::kQ6K, 0, "Q6_K", 256, 210},
    {DType::kQ8K, 0, "Q8_K", 256, 292},
    {DType::kIq2Xxs, 0, "IQ2_XXS", 256, 66},
    {DType::kIq2Xs, 0, "IQ2_XS", 256, 74},
    {DType::kIq3Xxs, 0, "IQ3_XXS", 256, 98},
    {DType::kIq1S, 0, "IQ1_S", 256, 50},
    {DType::kIq4Nl, 0, "IQ4_NL", 32, 18},
    {DType::kIq3S, 0, "IQ3_S", 256, 110},
    {DType::kIq2S, 0, "IQ2_S", 256, 82},
    {DType::kIq4Xs, 0, "IQ4_XS", 256, 136},
    {DType::kIq1M, 0, "IQ1_M", 256, 56},
    {DType::kTq10, 0, "TQ1_0", 256, 54},
    {DType::kTq20, 0, "TQ2_0", 256, 66},
    {DType::kMxfp4, 0, "MXFP4", 32, 17},
    {DType::kNvfp4, 0, "NVFP4", 64, 36},
    {DType::kQ10, 0, "Q1_0", 128, 18},
    {DType::kQ20, 0, "Q2_0", 64, 18},
}};

constexpr std::array<DType, kRows.size()> MakeAll() {
  std::array<DType, kRows.size()> all{};
  for (size_t i = 0; i < all.size(); ++i) all[i] = kRows[i].dtype;
  return all;
}
constexpr auto kAllDTypes = MakeAll();

constexpr bool RowsFollowTheEnum() {
  for (size_t i = 1; i < kRows.size(); ++i) {
    if (kRows[i].dtype <= kRows[i - 1].dtype) return false;
  }
  return true;
}
static_assert(RowsFollowTheEnum());

// Value of a DType → its row. Values without one have kRows.size(), which at()
// refuses.
constexpr auto kRowOf = [] {
  std::array<size_t, static_cast<size_t>(kRows.back().dtype) + 1> row_of{};
  row_of.fill(kRows.size());
  for (size_t i = 0; i < kRows.size(); ++i) {
    row_of[static_cast<size_t>(kRows[i].dtype)] = i;
  }
  return row_of;
}();

const Row& RowOf(DType dtype) {
  return kRows.at(kRowOf.at(static_cast<size_t>(dtype)));
}

}  // namespace

std::span<const DType> AllDTypes() { return kAllDTypes; }

uint32_t DTypeBits(DType dtype) { return RowOf(dtype).bits; }

bool IsBlockDType(DType dtype) { return RowOf(dtype).bits == 0; }

uint32_t BlockElements(DType dtype) { return RowOf(dtype).block_elements; }

uint32_t BlockBytes(DType dtype) { return RowOf(dtype).block_bytes; }

std::string_view DTypeName(DType dtype) { return RowOf(dtype).name; }

std::optional<DType> DTypeFromName(std::string_view name) {
  for (const Row& row : kRows) {
    if (row.name == name) return row.dtype;
  }
  return std::nullopt;
}

}  // namespace weightfs
