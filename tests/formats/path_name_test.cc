#include "formats/view/path_name.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "formats/text.h"

namespace weightfs {
namespace {

using ::testing::ElementsAre;

TEST(PathNameTest, LeavesOrdinaryNamesAlone) {
  EXPECT_THAT(EscapeName("h.0.attn.c_attn.weight"),
              ElementsAre("h.0.attn.c_attn.weight"));
  EXPECT_THAT(EscapeName("a b~é😀\"\\*?<>|:"), ElementsAre("a b~é😀\"\\*?<>|:"));
  EXPECT_THAT(EscapeName(".hidden"), ElementsAre(".hidden"));
  EXPECT_THAT(EscapeName("..."), ElementsAre("..."));
}

TEST(PathNameTest, SlashesMakeFolders) {
  EXPECT_THAT(EscapeName("a/b/c"), ElementsAre("a", "b", "c"));
  EXPECT_THAT(EscapeName("/"), ElementsAre("%_", "%_"));
  EXPECT_THAT(EscapeName("/a//b/"), ElementsAre("%_", "a", "%_", "b", "%_"));
}

TEST(PathNameTest, EscapesWhatPathsCannotHold) {
  EXPECT_THAT(EscapeName(""), ElementsAre("%_"));
  EXPECT_THAT(EscapeName("."), ElementsAre("%2E"));
  EXPECT_THAT(EscapeName("../.."), ElementsAre("%2E%2E", "%2E%2E"));
  EXPECT_THAT(EscapeName("50%"), ElementsAre("50%25"));
  EXPECT_THAT(EscapeName(std::string("a\0\n\x1f\x7f", 5)),
              ElementsAre("a%00%0A%1F%7F"));
  EXPECT_THAT(EscapeName("\xff\xc3x"), ElementsAre("%FF%C3x"));
  EXPECT_THAT(EscapeName("\xed\xa0\x80"), ElementsAre("%ED%A0%80"));
  // A sequence that a slash cuts in two is two broken ones.
  EXPECT_THAT(EscapeName("\xc3/\xa9"), ElementsAre("%C3", "%A9"));
}

TEST(PathNameTest, UnescapeRefusesWhatEscapeNeverMakes) {
  for (const char* component :
       {"",     ".",    "..",     "%",   "%2",        "%2e",
        "%41",  "%2F",  "%zz",    "%_x", "x%_",       "a/b",
        "\x01", "\xff", "%C3%A9", "%2E", "%2E%2E%2E", "%~0123456789abcdef",
        "%%",   "%25%"}) {
    const std::vector<std::string> components = {component};
    const bool made = std::string_view(component) == "%2E";
    EXPECT_EQ(UnescapeName(components).has_value(), made) << component;
  }
  EXPECT_EQ(UnescapeName({}), std::nullopt);
  EXPECT_EQ(UnescapeName({"a", ""}), std::nullopt);
}

class PathNamePropertyTest : public ::testing::Test {
 protected:
  static constexpr uint32_t kSeed = 20261124;
  std::mt19937 random_{kSeed};

  // Few different bytes, so that the rules meet each other.
  std::string RandomText(size_t longest) {
    static constexpr std::string_view kBytes(
        "ab./%_~2EeF\x00\x1f\x7f\xc3\xa9\xf0\x9f\x98\x80\xff", 20);
    std::string text(random_() % (longest + 1), '\0');
    for (char& c : text) {
      c = random_() % 4 == 0 ? static_cast<char>(random_() & 0xff)
                             : kBytes[random_() % kBytes.size()];
    }
    return text;
  }
};

TEST_F(PathNamePropertyTest, EveryNameComesBackAndIsASafePath) {
  SCOPED_TRACE(kSeed);
  std::map<std::vector<std::string>, std::string> seen;
  for (int i = 0; i < 200'000; ++i) {
    const std::string name = RandomText(12);
    const auto components = EscapeName(name);
    ASSERT_FALSE(components.empty());
    for (const std::string& component : components) {
      ASSERT_TRUE(IsUtf8(component)) << QuoteName(name);
      ASSERT_NE(component, "");
      ASSERT_NE(component, ".");
      ASSERT_NE(component, "..");
      ASSERT_FALSE(component.starts_with("%~"));
      for (const char c : component) {
        ASSERT_NE(c, '/');
        ASSERT_FALSE(static_cast<unsigned char>(c) < 0x20 || c == 0x7f);
      }
    }
    ASSERT_EQ(UnescapeName(components), name) << QuoteName(name);
    const auto [other, fresh] = seen.try_emplace(components, name);
    ASSERT_TRUE(fresh || other->second == name) << QuoteName(name);
  }
}

TEST_F(PathNamePropertyTest, WhatUnescapesIsWhatEscapeMakes) {
  SCOPED_TRACE(kSeed);
  int accepted = 0;
  for (int i = 0; i < 200'000; ++i) {
    const std::vector<std::string> components(1 + random_() % 2, RandomText(6));
    const auto name = UnescapeName(components);
    if (!name) continue;
    ++accepted;
    ASSERT_EQ(EscapeName(*name), components);
  }
  EXPECT_GT(accepted, 1000);
}

TEST(PathNameTest, HashComponentIsStableAndShort) {
  EXPECT_EQ(HashComponent(""), "%~2d06800538d394c2");  // XXH3-64 of nothing
  EXPECT_NE(HashComponent("a"), HashComponent("b"));
  EXPECT_EQ(HashComponent(std::string(10'000, 'x')).size(), 18U);
}

}  // namespace
}  // namespace weightfs
