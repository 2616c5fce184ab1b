#include "formats/pickle.h"

#include <string>

#include "tests/formats/format_testing.h"
#include "tests/support/matchers.h"

namespace weightfs {
namespace {

using ::testing::HasSubstr;
using std::string_literals::operator""s;
using PickleKind = Pickle::Kind;

// What is read borrows the bytes.
struct ParsedPickle {
  explicit ParsedPickle(std::string content)
      : bytes(std::move(content)), pickle(Pickle::Parse(bytes)) {}
  std::string bytes;
  Result<Pickle> pickle;
};

TEST(PickleTest, ACallIsANodeAndNothingRuns) {
  // os.system("touch x")
  const ParsedPickle read(
      "\x80\x02"
      "cos\nsystem\nX\x07" +
      std::string(3, '\0') + "touch x\x85R.");
  ASSERT_OK(read.pickle);
  const Pickle& pickle = *read.pickle;
  ASSERT_EQ(pickle.kind(pickle.root()), PickleKind::kCall);
  EXPECT_TRUE(pickle.IsGlobal(pickle.Callable(pickle.root()), "os", "system"));
  const auto args = pickle.Items(pickle.Args(pickle.root()));
  ASSERT_EQ(args.size(), 1u);
  EXPECT_EQ(pickle.Text(args[0]), "touch x");
}

TEST(PickleTest, ValuesOfEachKind) {
  // (None, True, 1, -2, 258, 70000, 0.5, 2^40, b"ab")
  const ParsedPickle read(
      "\x80\x03("
      "N\x88K\x01J\xfe\xff\xff\xffM\x02\x01J\x70\x11\x01\0G\x3f\xe0\0\0\0\0"
      "\0\0\x8a\x06\0\0\0\0\0\x01"
      "C\x02"
      "abt."s);
  ASSERT_OK(read.pickle);
  const Pickle& pickle = *read.pickle;
  const auto items = pickle.Items(pickle.root());
  ASSERT_EQ(items.size(), 9u);
  EXPECT_EQ(pickle.kind(items[0]), PickleKind::kNone);
  EXPECT_EQ(pickle.Int(items[1]), 1);
  EXPECT_EQ(pickle.Int(items[2]), 1);
  EXPECT_EQ(pickle.Int(items[3]), -2);
  EXPECT_EQ(pickle.Int(items[4]), 258);
  EXPECT_EQ(pickle.Int(items[5]), 70000);
  EXPECT_EQ(pickle.Float(items[6]), 0.5);
  EXPECT_EQ(pickle.Int(items[7]), int64_t{1} << 40);
  EXPECT_EQ(pickle.kind(items[8]), PickleKind::kBytes);
  EXPECT_EQ(pickle.Text(items[8]), "ab");
}

TEST(PickleTest, AListThatHoldsItself) {
  const ParsedPickle read("\x80\x02]q\0h\0a."s);
  ASSERT_OK(read.pickle);
  const auto items = read.pickle->Items(read.pickle->root());
  ASSERT_EQ(items.size(), 1u);
  EXPECT_EQ(items[0], read.pickle->root());
}

TEST(PickleTest, APrefixIsOneThatGoesOn) {
  const std::string bytes = "\x80\x02]";
  auto begun = Pickle::ParsePrefix(bytes);
  ASSERT_OK(begun);
  EXPECT_FALSE(begun->has_value());
  const std::string whole = "\x80\x02].and more";
  auto read = Pickle::ParsePrefix(whole);
  ASSERT_OK(read);
  ASSERT_TRUE(read->has_value());
  EXPECT_EQ((*read)->size(), 4u);
}

struct BadPickle {
  const char* name;
  std::string bytes;
  const char* message;
};

class PickleMalformationTest : public ::testing::TestWithParam<BadPickle> {};

TEST_P(PickleMalformationTest, IsRefused) {
  const ParsedPickle read(GetParam().bytes);
  ASSERT_FALSE(read.pickle.has_value());
  EXPECT_THAT(read.pickle.error().message(), HasSubstr(GetParam().message));
}

std::string Repeated(const std::string& what, size_t count) {
  std::string all;
  for (size_t i = 0; i < count; ++i) all += what;
  return all;
}

INSTANTIATE_TEST_SUITE_P(
    Each, PickleMalformationTest,
    ::testing::Values(
        BadPickle{"Empty", "", "end before it does"},
        BadPickle{"NoStop", "\x80\x02N", "end before it does"},
        BadPickle{"NewerProtocol", "\x80\x06N.", "protocol"},
        BadPickle{"UnknownOpcode", "\x80\x02\xff.", "offset 2"},
        BadPickle{"NothingToStop", "\x80\x02.", "offset 2"},
        BadPickle{"TupleOfNothing", "\x80\x02\x85.", "offset 2"},
        BadPickle{"AppendToNothing", "\x80\x02Na.", "offset 3"},
        BadPickle{"AppendToANumber", "\x80\x02K\x01Na.", "offset 5"},
        BadPickle{"MarkIsMissing", "\x80\x02t.", "offset 2"},
        BadPickle{"OddDict", "\x80\x02}(Nu.", "offset 5"},
        BadPickle{"MemoIsEmpty", "\x80\x02h\x05.", "offset 2"},
        BadPickle{"HugeMemo", "\x80\x02Nr\xff\xff\xff\x7f.", "offset 3"},
        BadPickle{"HugeString",
                  "\x80\x02X\xff\xff\xff\x7f"
                  "abc.",
                  "end before it does"},
        BadPickle{"HugeLong", "\x80\x02\x8b\xff\xff\xff\x7f.",
                  "end before it does"},
        BadPickle{"NegativeLong", "\x80\x02\x8b\xff\xff\xff\xff.",
                  "end before it does"},
        BadPickle{"LineThatEnds",
                  "\x80\x02"
                  "cos\nsystem",
                  "end before it does"},
        BadPickle{"Marks",
                  "\x80\x02" + Repeated("(", kMaxPickleMarks + 1) + "N.",
                  "MARK"}),
    [](const auto& each) { return each.param.name; });

}  // namespace
}  // namespace weightfs
