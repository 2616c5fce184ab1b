#include "formats/text.h"

#include <gtest/gtest.h>

#include <string>

namespace weightfs {
namespace {

// UTF-8 of a code point, by the book, surrogates too.
std::string Encode(uint32_t point) {
  std::string out;
  if (point < 0x80) {
    out += static_cast<char>(point);
  } else if (point < 0x800) {
    out += static_cast<char>(0xc0 | point >> 6);
    out += static_cast<char>(0x80 | (point & 0x3f));
  } else if (point < 0x10000) {
    out += static_cast<char>(0xe0 | point >> 12);
    out += static_cast<char>(0x80 | ((point >> 6) & 0x3f));
    out += static_cast<char>(0x80 | (point & 0x3f));
  } else {
    out += static_cast<char>(0xf0 | point >> 18);
    out += static_cast<char>(0x80 | ((point >> 12) & 0x3f));
    out += static_cast<char>(0x80 | ((point >> 6) & 0x3f));
    out += static_cast<char>(0x80 | (point & 0x3f));
  }
  return out;
}

TEST(TextTest, AcceptsEveryCodePointButSurrogates) {
  for (uint32_t point = 0; point < 0x110400; ++point) {
    const std::string text = Encode(point);
    const bool valid = point <= 0x10ffff && (point < 0xd800 || point > 0xdfff);
    ASSERT_EQ(IsUtf8(text), valid) << std::hex << point;
    ASSERT_EQ(Utf8SequenceLength(text + "x"), valid ? text.size() : 0);
  }
}

TEST(TextTest, RefusesBrokenSequences) {
  for (const std::string text :
       {"\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xc3", "\xc3(", "\xe0\x80\x80",
        "\xe2\x82", "\xe2(\xa1", "\xe2\x82(", "\xf0\x80\x80\x80",
        "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xf0\x9f\x92", "\xff",
        "\xfe"}) {
    EXPECT_FALSE(IsUtf8(text)) << QuoteName(text);
    EXPECT_FALSE(IsUtf8("a" + text)) << QuoteName(text);
    EXPECT_EQ(Utf8SequenceLength(text), 0U) << QuoteName(text);
  }
  EXPECT_TRUE(IsUtf8(""));
  EXPECT_EQ(Utf8SequenceLength(""), 0U);
}

TEST(TextTest, QuotesWhatDoesNotPrint) {
  EXPECT_EQ(QuoteName("h.0.weight"), "\"h.0.weight\"");
  EXPECT_EQ(QuoteName("é"), "\"é\"");
  EXPECT_EQ(QuoteName("a\nb\x1b[0m"), "\"a\\x0ab\\x1b[0m\"");
  EXPECT_EQ(QuoteName("\"\\"), "\"\\x22\\x5c\"");
  EXPECT_EQ(QuoteName("\xff\x80"), "\"\\xff\\x80\"");
  EXPECT_EQ(QuoteName("\xc2\x85"), "\"\\xc2\\x85\"");  // a C1 control
  EXPECT_EQ(QuoteName(std::string(1, '\0')), "\"\\x00\"");
}

TEST(TextTest, QuotesWhatReordersOrHides) {
  // NOLINTNEXTLINE(misc-misleading-bidirectional): what is to be hidden
  EXPECT_EQ(QuoteName("a\u202eb"), "\"a\\xe2\\x80\\xaeb\"");
  EXPECT_EQ(QuoteName("\u00b5 \u00e9"), "\"\u00b5 \u00e9\"");
}

TEST(TextTest, PlainJsonSaysTheSame) {
  EXPECT_EQ(PlainJson("{\n \"é\": 1\n}\n"), "{\n \"é\": 1\n}\n");
  // NOLINTNEXTLINE(misc-misleading-bidirectional): what is to be hidden
  EXPECT_EQ(PlainJson("\"\x7f\u0085\u202e\""), "\"\\u007f\\u0085\\u202e\"");
  EXPECT_EQ(PlainJson("\"\U000E0001\U0001F600\""),
            "\"\\udb40\\udc01\U0001F600\"");
  EXPECT_EQ(PlainJson("\xff"), "\xff");
}

TEST(TextTest, CutsLongNames) {
  const std::string quoted = QuoteName(std::string(100'000, 'x'));
  EXPECT_LT(quoted.size(), 200U);
  EXPECT_NE(quoted.find("100000 bytes"), std::string::npos);
}

}  // namespace
}  // namespace weightfs
