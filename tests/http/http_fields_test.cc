#include "cache/http/http_fields.h"

#include "tests/support/matchers.h"

namespace weightfs {
namespace {

using std::chrono::seconds;

HttpResponse With(std::string name, std::string value) {
  return HttpResponse{200, {{std::move(name), std::move(value)}}};
}

TEST(HttpFieldsTest, DecimalsAreDigitsOnly) {
  EXPECT_EQ(ParseDecimal("0"), 0u);
  EXPECT_EQ(ParseDecimal("18446744073709551615"), UINT64_MAX);
  for (const char* text : {"", " 1", "1 ", "+1", "-1", "0x1", "1.0", "1e3",
                           "18446744073709551616"}) {
    EXPECT_EQ(ParseDecimal(text), std::nullopt) << text;
  }
}

TEST(HttpFieldsTest, ContentRangeIsReadStrictly) {
  const auto range = ParseContentRange("bytes 5-9/100");
  ASSERT_TRUE(range.has_value());
  EXPECT_EQ(range->first, 5u);
  EXPECT_EQ(range->last, 9u);
  EXPECT_EQ(range->total, 100u);
  EXPECT_EQ(ParseContentRange("bytes 0-0/*")->total, std::nullopt);
  for (const char* text :
       {"", "bytes", "bytes ", "bytes 5-9", "bytes 9-5/100", "bytes 5-9/9",
        "bytes */100", "bytes 5-/100", "bytes -9/100", "items 5-9/100",
        "bytes 5-9/100,bytes 20-30/100", "bytes 5 - 9/100", "bytes=5-9/100",
        "bytes 5-9/ 100", "bytes 5/9-100", "bytes 5-18446744073709551616/9"}) {
    EXPECT_EQ(ParseContentRange(text), std::nullopt) << text;
  }
}

TEST(HttpFieldsTest, NextLinkIsFoundAmongOthers) {
  EXPECT_EQ(NextLink(With("Link", "<https://h/x?c=1>; rel=\"next\"")),
            "https://h/x?c=1");
  EXPECT_EQ(NextLink(With("link", "</a>; rel=prev, </b?x=1,2>; rel=next")),
            "/b?x=1,2");
  EXPECT_EQ(NextLink(With("Link", "</a>; title=\"x, rel=next\"; rel=\"prev\"")),
            std::nullopt);
  EXPECT_EQ(NextLink(With("Link", "</a>; rel=\"last next\"")), "/a");
  EXPECT_EQ(NextLink(With("Link", "</a>; REL=NEXT")), "/a");
  EXPECT_EQ(NextLink(With("Link", "</a>; rel=\"xet-auth\"")), std::nullopt);
  EXPECT_EQ(NextLink(With("Link", "</a")), std::nullopt);
  EXPECT_EQ(NextLink(With("Link", "")), std::nullopt);
  const HttpResponse two{
      200, {{"Link", "</a>; rel=prev"}, {"Link", "</b>; rel=next"}}};
  EXPECT_EQ(NextLink(two), "/b");
}

TEST(HttpFieldsTest, WaitsAsTheServerSays) {
  EXPECT_EQ(RetryAfter(With("Retry-After", "7")), seconds(7));
  EXPECT_EQ(RetryAfter(With("Retry-After", "soon")), std::nullopt);
  EXPECT_EQ(RetryAfter(With("Retry-After", "99999999")), seconds(3600));
  EXPECT_EQ(RetryAfter(With("RateLimit", "\"api\";r=0;t=55")), seconds(56));
  EXPECT_EQ(RetryAfter(With("RateLimit", "\"api\";r=3;t=55")), std::nullopt);
  EXPECT_EQ(RetryAfter(With("RateLimit", "\"api\";r=0")), std::nullopt);
  EXPECT_EQ(RetryAfter(With("RateLimit", "\"r=0;t=9\";r=1;t=2")), std::nullopt);
  EXPECT_EQ(RetryAfter(HttpResponse{429, {}}), std::nullopt);
  const HttpResponse both{
      429, {{"RateLimit", "\"api\";r=0;t=2"}, {"Retry-After", "1"}}};
  EXPECT_EQ(RetryAfter(both), seconds(3));
}

TEST(HttpFieldsTest, ContentLengthsMustAgree) {
  EXPECT_EQ(ContentLength(With("content-length", " 12 ")), 12u);
  EXPECT_EQ(ContentLength(With("Content-Length", "-1")), std::nullopt);
  EXPECT_EQ(ContentLength(HttpResponse{200, {}}), std::nullopt);
  HttpResponse two{200, {{"Content-Length", "5"}, {"Content-Length", "5"}}};
  EXPECT_EQ(ContentLength(two), 5u);
  two.headers[1].second = "6";
  EXPECT_EQ(ContentLength(two), std::nullopt);
}

TEST(HttpFieldsTest, EtagsLoseTheirWrapping) {
  EXPECT_EQ(NormalizeEtag("W/\"abc\""), "abc");
  EXPECT_EQ(NormalizeEtag("\"abc\""), "abc");
  EXPECT_EQ(NormalizeEtag("abc"), "abc");
  EXPECT_EQ(NormalizeEtag("\""), "\"");
}

TEST(HttpFieldsTest, DatesAndPrintableText) {
  using std::chrono::system_clock;
  EXPECT_EQ(ParseHttpDate("Thu, 01 Jan 1970 00:01:00 GMT"),
            system_clock::from_time_t(60));
  EXPECT_EQ(ParseHttpDate("yesterday-ish"), std::nullopt);
  EXPECT_EQ(PrintableText("a\n\x1b[2J\xc2\x9b"), "a??[2J??");
  EXPECT_EQ(PrintableText(std::string(1000, 'a')).size(), 303u);
}

}  // namespace
}  // namespace weightfs
