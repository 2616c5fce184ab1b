#include "formats/json_events.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/support/matchers.h"

namespace weightfs {
namespace {

using ::testing::HasSubstr;
using Kind = JsonEvent::Kind;

// Writes the events down.
class Recorder final : public JsonHandler {
 public:
  Result<> Handle(const JsonEvent& event) override {
    switch (event.kind) {
      case Kind::kBeginObject:
        log += '{';
        break;
      case Kind::kEndObject:
        log += '}';
        break;
      case Kind::kBeginArray:
        log += '[';
        break;
      case Kind::kEndArray:
        log += ']';
        break;
      case Kind::kKey:
        log += "k(" + *event.text + ")";
        break;
      case Kind::kString:
        log += "s(" + *event.text + ")";
        break;
      case Kind::kUnsigned:
        log += "u(" + std::to_string(event.number) + ")";
        break;
      case Kind::kNegative:
        log += '-';
        break;
      case Kind::kFloat:
        log += 'f';
        break;
      case Kind::kBool:
        log += 'b';
        break;
      case Kind::kNull:
        log += 'n';
        break;
    }
    if (!fail_on.empty() && log.ends_with(fail_on)) {
      return MakeError(Code::kDenied, "asked to fail");
    }
    return {};
  }

  std::string log;
  std::string fail_on;
};

Result<std::string> Parse(std::string_view text) {
  Recorder recorder;
  RETURN_IF_ERROR(ParseJson(text, 0, recorder));
  return recorder.log;
}

TEST(JsonEventsTest, TellsEveryKindOfValue) {
  EXPECT_THAT(Parse(R"({"a":[1,-1,1.5,1e2,true,null,"x"],"a":{}})"),
              IsOkAndHolds("{k(a)[u(1)-ffbns(x)]k(a){}}"));
}

TEST(JsonEventsTest, IntegersAreExactUpTo64Bits) {
  EXPECT_THAT(Parse("[18446744073709551615]"),
              IsOkAndHolds("[u(18446744073709551615)]"));
  EXPECT_THAT(Parse("[18446744073709551616]"), IsOkAndHolds("[f]"));
  EXPECT_THAT(Parse("[-0,0]"), IsOkAndHolds("[-u(0)]"));
  EXPECT_THAT(Parse("[4.0,4e0]"), IsOkAndHolds("[ff]"));
}

TEST(JsonEventsTest, DecodesEscapes) {
  EXPECT_THAT(Parse(R"(["\u00e9\ud83d\ude00\/\"\\\n"])"),
              IsOkAndHolds("[s(é😀/\"\\\n)]"));
  EXPECT_THAT(Parse(R"(["\u0000"])"), IsOkAndHolds(std::string("[s(\0)]", 6)));
}

TEST(JsonEventsTest, TakesWhiteSpaceAroundTheValue) {
  EXPECT_THAT(Parse(" \t\r\n{} \t\r\n"), IsOkAndHolds("{}"));
}

TEST(JsonEventsTest, RefusesWhatIsNoJson) {
  using std::string_literals::operator""s;
  for (const std::string& text : {""s,
                                  " "s,
                                  "{"s,
                                  "}"s,
                                  "{}x"s,
                                  "{}{}"s,
                                  "{}\0"s,
                                  "\0"s,
                                  "{}\0\0"s,
                                  "[1,]"s,
                                  "{\"a\":1,}"s,
                                  "{\"a\"}"s,
                                  "{a:1}"s,
                                  "{'a':1}"s,
                                  "[01]"s,
                                  "[+1]"s,
                                  "[.5]"s,
                                  "[1.]"s,
                                  "[0x1]"s,
                                  "[NaN]"s,
                                  "[Infinity]"s,
                                  "[1e400]"s,
                                  "[nul]"s,
                                  "[\"\x01\"]"s,
                                  "[\"\t\"]"s,
                                  "[\"\xff\"]"s,
                                  "[\"\xc0\x80\"]"s,
                                  "[\"\xed\xa0\x80\"]"s,
                                  "[\"\\ud800\"]"s,
                                  "[\"\\udc00\"]"s,
                                  "[\"\\ud800\\u0041\"]"s,
                                  "[\"\\x\"]"s,
                                  "\xef\xbb\xbf{}"s,
                                  "\x0b{}"s,
                                  "[1 2]"s,
                                  "/**/{}"s,
                                  "[1]//"s,
                                  "\xa0{}"s}) {
    EXPECT_THAT(Parse(text), HasCode(Code::kCorrupt)) << text;
  }
}

TEST(JsonEventsTest, LimitsDepth) {
  const auto nested = [](size_t depth) {
    return std::string(depth, '[') + std::string(depth, ']');
  };
  EXPECT_OK(Parse(nested(kMaxJsonDepth)));
  const auto deep = Parse(nested(kMaxJsonDepth + 1));
  EXPECT_THAT(deep, HasCode(Code::kCorrupt));
  EXPECT_THAT(deep, HasMessage(HasSubstr("nesting")));
  EXPECT_THAT(Parse(std::string(1'000'000, '[')), HasCode(Code::kCorrupt));
  // Siblings are not depth.
  std::string siblings = "[";
  for (int i = 0; i < 500; ++i) siblings += "{},";
  EXPECT_OK(Parse(siblings + "{}]"));
}

TEST(JsonEventsTest, ErrorsSayWhere) {
  Recorder recorder;
  recorder.fail_on = "u(7)";
  const auto failed = ParseJson(R"({"a":[1,7],"b":2})", 100, recorder);
  EXPECT_THAT(failed, HasCode(Code::kDenied));
  // Just after the 7, give or take the character that ended it.
  EXPECT_THAT(failed, HasMessage(::testing::AnyOf("byte 109: asked to fail",
                                                  "byte 110: asked to fail")));
  EXPECT_EQ(recorder.log, "{k(a)[u(1)u(7)");

  Recorder plain;
  EXPECT_THAT(ParseJson("[1,\x01]", 8, plain),
              HasMessage(HasSubstr("byte 12:")));
  EXPECT_THAT(ParseJson(std::string_view("{}\0", 3), 8, plain),
              HasMessage("byte 10: a NUL byte"));
}

TEST(JsonEventsTest, MessagesHoldNoRawBytes) {
  const auto failed = Parse(std::string("[\"\x1b\x07") + "\xff");
  ASSERT_THAT(failed, HasCode(Code::kCorrupt));
  for (const char c : failed.error().message()) {
    EXPECT_TRUE(c >= 0x20 && c < 0x7f) << failed.error().message();
  }
}

}  // namespace
}  // namespace weightfs
