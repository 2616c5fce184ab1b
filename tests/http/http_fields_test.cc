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
  EXPECT_EQ(RetryAfter(With("Retry-After", "50000")), seconds(3600));
  EXPECT_EQ(RetryAfter(With("Retry-After", "99999999")), std::nullopt);
  EXPECT_EQ(RetryAfter(With("Retry-After", "99999999999999999999999")),
            std::nullopt);
  EXPECT_EQ(RetryAfter(With("RateLimit", "\"api\";r=0;t=55")), seconds(56));
  EXPECT_EQ(RetryAfter(With("RateLimit", "\"api\";r=3;t=55")), std::nullopt);
  EXPECT_EQ(RetryAfter(With("RateLimit", "\"api\";r=0")), std::nullopt);
  EXPECT_EQ(RetryAfter(With("RateLimit", "\"r=0;t=9\";r=1;t=2")), std::nullopt);
  EXPECT_EQ(RetryAfter(HttpResponse{429, {}}), std::nullopt);
  const HttpResponse both{
      429, {{"RateLimit", "\"api\";r=0;t=2"}, {"Retry-After", "1"}}};
  EXPECT_EQ(RetryAfter(both), seconds(3));
}

TEST(HttpFieldsTest, WaitsUntilADate) {
  const auto now = *ParseHttpDate("Sun, 06 Nov 1994 08:49:37 GMT");
  const auto wait = [&](const char* date) {
    return RetryAfter(With("Retry-After", date), now);
  };
  EXPECT_EQ(wait("Sun, 06 Nov 1994 08:50:37 GMT"), seconds(60));
  EXPECT_EQ(wait("Sunday, 06-Nov-94 08:49:39 GMT"), seconds(2));
  EXPECT_EQ(wait("Sun, 06 Nov 1994 08:49:07 GMT"), seconds(0));
  EXPECT_EQ(wait("Sun, 06 Nov 1994 20:49:37 GMT"), seconds(3600));
  EXPECT_EQ(wait("Sun, 06 Nov 2044 08:49:37 GMT"), std::nullopt);
  // The server's own clock counts, where it tells the time.
  const HttpResponse dated{503,
                           {{"Retry-After", "Sun, 06 Nov 2033 08:49:47 GMT"},
                            {"Date", "Sun, 06 Nov 2033 08:49:37 GMT"}}};
  EXPECT_EQ(RetryAfter(dated, now), seconds(10));
}

TEST(HttpFieldsTest, ReadsTheFormsOfRateLimit) {
  const auto limit = [](const char* value) {
    return RetryAfter(With("RateLimit", value));
  };
  EXPECT_EQ(limit("\"a\";r=5;t=9, \"b\";r=0;t=3"), seconds(4));
  EXPECT_EQ(limit("\"a\";r=0;t=9, \"b\";r=0;t=3"), seconds(10));
  EXPECT_EQ(limit("\"a,r=0\";r=5;t=9"), std::nullopt);
  EXPECT_EQ(limit("limit=100, remaining=0, reset=7"), seconds(8));
  EXPECT_EQ(limit("limit=100, remaining=1, reset=7"), std::nullopt);
  EXPECT_EQ(limit("\"a\";r=0;t=99999999"), std::nullopt);
  const HttpResponse apart{
      429, {{"RateLimit-Remaining", "0"}, {"ratelimit-reset", "4"}}};
  EXPECT_EQ(RetryAfter(apart), seconds(5));
  const HttpResponse left{
      429, {{"RateLimit-Remaining", "2"}, {"RateLimit-Reset", "4"}}};
  EXPECT_EQ(RetryAfter(left), std::nullopt);
  const HttpResponse lines{
      429, {{"RateLimit", "\"a\";r=0;t=1"}, {"RateLimit", "\"b\";r=0;t=5"}}};
  EXPECT_EQ(RetryAfter(lines), seconds(6));
}

TEST(HttpFieldsTest, HeadersThatContradictEachOtherDoNotAgree) {
  const HttpResponse response{206,
                              {{"A", "1"}, {"a", "1"}, {"B", "1"}, {"b", "2"}}};
  EXPECT_TRUE(response.Agrees("A"));
  EXPECT_FALSE(response.Agrees("B"));
  EXPECT_TRUE(response.Agrees("C"));
}

TEST(HttpFieldsTest, WhatMayPassIsToldFromWhatStays) {
  for (int status : {408, 421, 425, 429, 500, 502, 503, 504, 507, 599}) {
    EXPECT_TRUE(IsPassing(status)) << status;
  }
  for (int status : {400, 401, 403, 404, 410, 416, 418, 451}) {
    EXPECT_FALSE(IsPassing(status)) << status;
  }
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
  // The clock's nanoseconds end on 11 April 2262.
  EXPECT_NE(ParseHttpDate("Fri, 11 Apr 2262 23:47:16 GMT"), std::nullopt);
  EXPECT_EQ(ParseHttpDate("Fri, 11 Apr 2262 23:47:17 GMT"), std::nullopt);
  EXPECT_EQ(ParseHttpDate("Fri, 31 Dec 9999 23:59:59 GMT"), std::nullopt);
  EXPECT_EQ(PrintableText("a\n\x1b[2J\xc2\x9b"), "a??[2J??");
  EXPECT_EQ(PrintableText(std::string(1000, 'a')).size(), 303u);
}

TEST(HttpFieldsTest, TextForMessagesRepeatsNoSecret) {
  EXPECT_EQ(PrintableText("your hf_abc, hf_abc is wrong", "hf_abc"),
            "your [token], [token] is wrong");
  EXPECT_EQ(PrintableText("a token", "token"), "a [token]");
  EXPECT_EQ(PrintableText("oo", "o"), "[token][token]");
  // Nor a part of it, where the text is cut.
  const std::string fill(297, 'a');
  EXPECT_EQ(PrintableText(fill + "hf_abc", "hf_abc"), fill + "[to...");
  EXPECT_EQ(PrintableText(fill + "aaahf_abc", "hf_abc"), fill + "aaa...");
}

}  // namespace
}  // namespace weightfs
