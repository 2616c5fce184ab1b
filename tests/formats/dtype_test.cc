#include "formats/dtype.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>
#include <utility>

namespace weightfs {
namespace {

TEST(DTypeTest, NamesGoBothWays) {
  std::set<std::string_view> names;
  for (const DType dtype : AllDTypes()) {
    EXPECT_EQ(DTypeFromName(DTypeName(dtype)), dtype);
    names.insert(DTypeName(dtype));
  }
  EXPECT_EQ(names.size(), 51U);
}

TEST(DTypeTest, NamesAreExact) {
  for (const std::string_view name :
       {"", "f32", "F32 ", " F32", "F128", "C256", "F8", "BF16\n", "float32",
        "q4_0", "Q4_2", "Q4_3", "Q4_K_M", "IQ4_NL_4_4", "IQ2"}) {
    EXPECT_EQ(DTypeFromName(name), std::nullopt) << name;
  }
}

TEST(DTypeTest, BitsFollowTheName) {
  for (const DType dtype : AllDTypes()) {
    if (IsBlockDType(dtype)) continue;
    const std::string name(DTypeName(dtype));
    uint32_t bits = 8;  // BOOL
    if (dtype != DType::kBool) {
      const size_t digit = name.find_first_of("0123456789");
      bits = static_cast<uint32_t>(std::stoul(name.substr(digit)));
    }
    EXPECT_EQ(DTypeBits(dtype), bits) << name;
    EXPECT_EQ(BlockElements(dtype), 1U) << name;
    EXPECT_EQ(BlockBytes(dtype), bits / 8) << name;
  }
}

// As formats/gguf.md has it, which is what ggml's headers assert.
TEST(DTypeTest, BlocksHaveGgmlsSizes) {
  const std::map<std::string_view, std::pair<uint32_t, uint32_t>> sizes = {
      {"Q4_0", {32, 18}},    {"Q4_1", {32, 20}},     {"Q5_0", {32, 22}},
      {"Q5_1", {32, 24}},    {"Q8_0", {32, 34}},     {"Q8_1", {32, 36}},
      {"Q2_K", {256, 84}},   {"Q3_K", {256, 110}},   {"Q4_K", {256, 144}},
      {"Q5_K", {256, 176}},  {"Q6_K", {256, 210}},   {"Q8_K", {256, 292}},
      {"IQ1_M", {256, 56}},  {"IQ1_S", {256, 50}},   {"IQ2_S", {256, 82}},
      {"IQ2_XS", {256, 74}}, {"IQ2_XXS", {256, 66}}, {"IQ3_S", {256, 110}},
      {"IQ4_NL", {32, 18}},  {"IQ3_XXS", {256, 98}}, {"IQ4_XS", {256, 136}},
      {"TQ1_0", {256, 54}},  {"TQ2_0", {256, 66}},   {"MXFP4", {32, 17}},
      {"NVFP4", {64, 36}},   {"Q1_0", {128, 18}},    {"Q2_0", {64, 18}}};
  size_t blocks = 0;
  for (const DType dtype : AllDTypes()) {
    if (!IsBlockDType(dtype)) continue;
    ++blocks;
    const auto size = sizes.find(DTypeName(dtype));
    ASSERT_NE(size, sizes.end()) << DTypeName(dtype);
    EXPECT_EQ(BlockElements(dtype), size->second.first) << size->first;
    EXPECT_EQ(BlockBytes(dtype), size->second.second) << size->first;
    EXPECT_EQ(DTypeBits(dtype), 0U) << size->first;
  }
  EXPECT_EQ(blocks, sizes.size());
}

// They are stored in caches and node ids.
TEST(DTypeTest, ValuesAreStable) {
  EXPECT_EQ(static_cast<int>(DType::kBool), 0);
  EXPECT_EQ(static_cast<int>(DType::kU8), 4);
  EXPECT_EQ(static_cast<int>(DType::kF16), 13);
  EXPECT_EQ(static_cast<int>(DType::kBF16), 14);
  EXPECT_EQ(static_cast<int>(DType::kF32), 17);
  EXPECT_EQ(static_cast<int>(DType::kU64), 21);
  EXPECT_EQ(static_cast<int>(DType::kC128), 22);
  EXPECT_EQ(static_cast<int>(DType::kC32), 23);
  EXPECT_EQ(static_cast<int>(DType::kQ40), 32);
  EXPECT_EQ(static_cast<int>(DType::kQ4K), 40);
  EXPECT_EQ(static_cast<int>(DType::kIq4Nl), 48);
  EXPECT_EQ(static_cast<int>(DType::kQ20), 58);
}

}  // namespace
}  // namespace weightfs
