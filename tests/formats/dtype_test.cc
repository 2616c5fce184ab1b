#include "formats/dtype.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

namespace weightfs {
namespace {

TEST(DTypeTest, NamesGoBothWays) {
  std::set<std::string_view> names;
  for (const DType dtype : AllDTypes()) {
    EXPECT_EQ(DTypeFromName(DTypeName(dtype)), dtype);
    names.insert(DTypeName(dtype));
  }
  EXPECT_EQ(names.size(), 22U);
}

TEST(DTypeTest, NamesAreExact) {
  for (const std::string_view name :
       {"", "f32", "F32 ", " F32", "F128", "C128", "F8", "BF16\n", "float32"}) {
    EXPECT_EQ(DTypeFromName(name), std::nullopt) << name;
  }
}

TEST(DTypeTest, BitsFollowTheName) {
  for (const DType dtype : AllDTypes()) {
    const std::string name(DTypeName(dtype));
    uint32_t bits = 8;  // BOOL
    if (dtype != DType::kBool) {
      const size_t digit = name.find_first_of("0123456789");
      bits = static_cast<uint32_t>(std::stoul(name.substr(digit)));
    }
    EXPECT_EQ(DTypeBits(dtype), bits) << name;
  }
}

// They are stored in caches and node ids.
TEST(DTypeTest, ValuesAreStable) {
  EXPECT_EQ(static_cast<int>(DType::kBool), 0);
  EXPECT_EQ(static_cast<int>(DType::kU8), 4);
  EXPECT_EQ(static_cast<int>(DType::kF16), 13);
  EXPECT_EQ(static_cast<int>(DType::kBF16), 14);
  EXPECT_EQ(static_cast<int>(DType::kF32), 17);
  EXPECT_EQ(static_cast<int>(DType::kU64), 21);
}

}  // namespace
}  // namespace weightfs
