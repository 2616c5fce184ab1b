#include "tools/text.h"

#include <string>
#include <vector>

#include "tests/support/matchers.h"

namespace weightfs {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(HumanSizeTest, ShowsThreeFigures) {
  EXPECT_EQ(HumanSize(0), "0 B");
  EXPECT_EQ(HumanSize(1023), "1023 B");
  EXPECT_EQ(HumanSize(1024), "1.00 KiB");
  EXPECT_EQ(HumanSize(1536), "1.50 KiB");
  EXPECT_EQ(HumanSize(10239), "10.0 KiB");
  EXPECT_EQ(HumanSize(102399), "100 KiB");
  EXPECT_EQ(HumanSize(1023 * 1024), "1.00 MiB");
  EXPECT_EQ(HumanSize(548105171), "523 MiB");
  EXPECT_EQ(HumanSize(UINT64_MAX), "16.0 EiB");
}

TEST(PrintableTest, LeavesTextAndHidesControl) {
  EXPECT_EQ(Printable("h.0.weight"), "h.0.weight");
  EXPECT_EQ(Printable("größe/重み"), "größe/重み");
  EXPECT_EQ(Printable("a\x1b[2Jb\n"), "a\\x1b[2Jb\\x0a");
  EXPECT_EQ(Printable("\xc2\x9b"
                      "2J"),
            "\\xc2\\x9b2J");
  EXPECT_EQ(Printable("\xff\x7f"), "\\xff\\x7f");
  EXPECT_EQ(Printable("\xc2\xa0"), "\xc2\xa0");
}

TEST(PrintableTest, NamesCannotReorderOrHideWhatIsAroundThem) {
  // NOLINTNEXTLINE(misc-misleading-bidirectional): what is to be hidden
  EXPECT_EQ(Printable("a\u202egnp.exe"), "a\\xe2\\x80\\xaegnp.exe");
  EXPECT_EQ(Printable("\u2067x\u2069"), "\\xe2\\x81\\xa7x\\xe2\\x81\\xa9");
  EXPECT_EQ(Printable("\u200b\ufeff"), "\\xe2\\x80\\x8b\\xef\\xbb\\xbf");
  EXPECT_EQ(Printable("a\u2028b"), "a\\xe2\\x80\\xa8b");
  EXPECT_EQ(Printable("\U000E0041"), "\\xf3\\xa0\\x81\\x81");
  const std::string family = "👨\u200d👩 क्\u200dष שלום";
  EXPECT_EQ(Printable(family), family);
  const std::string hostile = "\u202e\n\x1b]0;x\x07\xff\\x1b";
  EXPECT_EQ(Printable(Printable(hostile)), Printable(hostile));
}

TEST(JsonQuoteTest, MakesValidJson) {
  EXPECT_EQ(JsonQuote("a\"\\/\n\x01"), "\"a\\\"\\\\/\\u000a\\u0001\"");
  EXPECT_EQ(JsonQuote("ü"), "\"ü\"");
  EXPECT_EQ(JsonQuote("\xff"), "\"\\ufffd\"");
  // NOLINTNEXTLINE(misc-misleading-bidirectional): what is to be hidden
  EXPECT_EQ(JsonQuote("\x7f\u009b\u202e"), "\"\\u007f\\u009b\\u202e\"");
}

TEST(NearestNamesTest, FindsSlipsAndParts) {
  const std::vector<std::string> names = {"h.0.attn.weight", "h.1.attn.weight",
                                          "lm_head.weight", "wte.weight"};
  EXPECT_THAT(NearestNames("h.1.atn.weight", names, 2),
              ElementsAre("h.1.attn.weight", "h.0.attn.weight"));
  EXPECT_THAT(NearestNames("lm_head", names, 3), ElementsAre("lm_head.weight"));
  EXPECT_THAT(NearestNames("something.else", names, 3), IsEmpty());
  EXPECT_THAT(NearestNames("", names, 3), IsEmpty());
}

TEST(RenderTableTest, AlignsByCharactersNotBytes) {
  EXPECT_EQ(RenderTable({{"ü", "1 B", "x"}, {"abc", "10 B", "y"}}, {1}),
            "ü     1 B  x\nabc  10 B  y\n");
  EXPECT_EQ(RenderTable({}), "");
}

}  // namespace
}  // namespace weightfs
