#include "cache/http/url.h"

#include "tests/support/matchers.h"

namespace weightfs {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

Url U(std::string_view text) {
  auto url = Url::Parse(text);
  EXPECT_OK(url) << text;
  return *url;
}

TEST(UrlTest, TakesApartAndPutsTogether) {
  const Url url = U("HTTP://Hub.Example:8080/a%2Fb/c?x=1&y=%20z#frag");
  EXPECT_EQ(url.scheme(), "http");
  EXPECT_EQ(url.host(), "hub.example");
  EXPECT_EQ(url.port(), 8080);
  EXPECT_EQ(url.path(), "/a%2Fb/c");
  EXPECT_EQ(url.query(), "x=1&y=%20z");
  EXPECT_EQ(url.ToString(), "http://hub.example:8080/a%2Fb/c?x=1&y=%20z");
  EXPECT_EQ(url.Redacted(), "http://hub.example:8080/a%2Fb/c");
  EXPECT_EQ(U("https://h:443").ToString(), "https://h/");
  EXPECT_EQ(U("http://[::1]:80/x").Origin(), "http://[::1]");
}

TEST(UrlTest, RefusesWhatIsNoPlainHttpUrl) {
  for (const char* text :
       {"", "hub", "/path", "ftp://h/x", "file:///etc/passwd", "http://",
        "http://user@h/", "http://user:secret@h/", "http://:secret@h/",
        "http:/user:secret@h/", "http:///user:secret@h/", "user:secret@h",
        "http://2130706%34%33%33/", "http://0x7f%30%30%30%30%301/",
        "http://h:99999/", "http://h/a\nb", "http://h/a\rb", "javascript:1"}) {
    const auto url = Url::Parse(text);
    EXPECT_THAT(url, HasCode(Code::kInvalid)) << text;
    EXPECT_THAT(url, HasMessage(Not(HasSubstr("secret")))) << text;
  }
  EXPECT_THAT(Url::Parse("http://h/" + std::string(40'000, 'a')),
              HasCode(Code::kInvalid));
}

// Whatever libcurl makes of it.
TEST(UrlTest, EscapesInAHostAreRefusedByName) {
  for (const char* text :
       {"http://2130706%34%33%33/", "HTTPS://h%2ex:80?a", "http://%68/",
        "http://u%40@h/", "http:/%68/", "http:///h%", "http:/\\h%2e/"}) {
    EXPECT_THAT(Url::Parse(text), HasMessage(HasSubstr("escapes in a host")))
        << text;
  }
  EXPECT_OK(Url::Parse("http://h/%34?%33"));
  EXPECT_OK(Url::Parse("http://h?a=://b%2f"));
  const Url base = U("http://h/a/b");
  for (const char* text : {"//h%2ex/", "https:/%68", "http://%68/"}) {
    EXPECT_THAT(base.Resolve(text), HasMessage(HasSubstr("escapes in a host")))
        << text;
  }
  for (const char* text : {"/a//b%2f", "a//b%2f", "?a=//b%2f", "a/://b%2f"}) {
    EXPECT_OK(base.Resolve(text)) << text;
  }
}

TEST(UrlTest, ComparesSchemeHostAndPort) {
  const Url url = U("https://hub.example/a?x");
  EXPECT_TRUE(url.SameOrigin(U("https://HUB.example:443/b")));
  EXPECT_FALSE(url.SameOrigin(U("http://hub.example/a")));
  EXPECT_FALSE(url.SameOrigin(U("https://hub.example:8443/a")));
  EXPECT_FALSE(url.SameOrigin(U("https://evil.example/a")));
  EXPECT_FALSE(url.SameOrigin(U("https://hub.example.evil/a")));
  EXPECT_FALSE(url.SameOrigin(U("https://hub.example./a")));
}

TEST(UrlTest, ResolvesReferencesAndKeepsTheirQuery) {
  const Url base = U("http://h:81/a/b?old=1");
  const auto at = [&](std::string_view reference) {
    auto url = base.Resolve(reference);
    return url ? url->ToString() : url.error().ToString();
  };
  EXPECT_EQ(at("/api/resolve-cache/x?etag=%22q%22&d=1"),
            "http://h:81/api/resolve-cache/x?etag=%22q%22&d=1");
  EXPECT_EQ(at("c"), "http://h:81/a/c");
  EXPECT_EQ(at("../c?y"), "http://h:81/c?y");
  EXPECT_EQ(at("//other/x"), "http://other/x");
  EXPECT_EQ(at("https://other:444/x?s=a%2Bb%3D~"),
            "https://other:444/x?s=a%2Bb%3D~");
  EXPECT_EQ(at("/with space"), "http://h:81/with%20space");
  EXPECT_THAT(base.Resolve("http://h:81@evil/x"), HasCode(Code::kInvalid));
  EXPECT_THAT(base.Resolve("ftp://h/x"), HasCode(Code::kInvalid));
}

// Who connects and who decides about the token read a URL alike.
TEST(UrlTest, IsNotFooledAboutTheHost) {
  const Url hub = U("http://hub/");
  for (const char* text :
       {"http://hub\\@evil/", "http://hub#@evil/", "http://hub?@evil/",
        "http://evil#hub", "http://evil/@hub", "http://hub%2eevil/"}) {
    const auto url = Url::Parse(text);
    if (!url) continue;
    EXPECT_EQ(url->SameOrigin(hub), url->ToString().starts_with("http://hub/"))
        << text << " " << url->ToString();
  }
  EXPECT_EQ(U("http://hub#@evil/").host(), "hub");
}

TEST(UrlTest, FindsQueryValues) {
  const Url url = U("https://c/x?Expires=17&X-Amz-Date=2026%30&flag&a=b=c");
  EXPECT_EQ(url.QueryValue("Expires"), "17");
  EXPECT_EQ(url.QueryValue("X-Amz-Date"), "20260");
  EXPECT_EQ(url.QueryValue("flag"), "");
  EXPECT_EQ(url.QueryValue("a"), "b=c");
  EXPECT_EQ(url.QueryValue("expires"), std::nullopt);
}

TEST(UrlTest, EncodesForPathsAndRevisions) {
  EXPECT_EQ(UrlEncode("refs/pr/1"), "refs%2Fpr%2F1");
  EXPECT_EQ(UrlEncode("a/b c%ü+#?", "/"), "a/b%20c%25%C3%BC%2B%23%3F");
  EXPECT_EQ(UrlEncode(std::string_view("\0", 1)), "%00");
}

TEST(UrlTest, RedactsAnything) {
  EXPECT_EQ(RedactUrl("https://u:p@h/x?Signature=s#f"), "https://h/x");
  EXPECT_EQ(RedactUrl("https://h/x@y"), "https://h/x@y");
  EXPECT_EQ(RedactUrl("https://a:b@c:d@h/x"), "https://h/x");
  EXPECT_EQ(RedactUrl("//u:p@h"), "//h");
  EXPECT_EQ(RedactUrl("http:/u:p@h//x"), "http:/h//x");
  EXPECT_EQ(RedactUrl("http:///u:p@h/x"), "http:///h/x");
  EXPECT_EQ(RedactUrl("u:p@h/x"), "h/x");
  EXPECT_EQ(RedactUrl("http:u:p@h/x"), "h/x");
  EXPECT_EQ(RedactUrl("a\x1b[31mb"), "a?[31mb");
  EXPECT_LT(RedactUrl(std::string(10'000, 'a')).size(), 500u);
}

}  // namespace
}  // namespace weightfs
