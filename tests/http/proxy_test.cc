#include "cache/http/proxy.h"

#include <gtest/gtest.h>

#include <map>
#include <string>

#include "tests/support/matchers.h"

namespace weightfs {
namespace {

using Variables = std::map<std::string, std::string>;

std::string Proxy(const char* url, const Variables& variables) {
  auto parsed = Url::Parse(url);
  EXPECT_OK(parsed);
  return ProxyFor(*parsed, [&](const char* name) {
    const auto it = variables.find(name);
    return it == variables.end() ? "" : it->second;
  });
}

TEST(ProxyTest, ComesFromTheSchemesVariable) {
  const Variables variables = {
      {"http_proxy", "p:1"}, {"HTTPS_PROXY", "p:2"}, {"ALL_PROXY", "p:3"}};
  EXPECT_EQ(Proxy("http://h/", variables), "p:1");
  EXPECT_EQ(Proxy("https://h/", variables), "p:2");
  EXPECT_EQ(Proxy("http://h/", {{"HTTP_PROXY", "p:1"}}), "");
  EXPECT_EQ(Proxy("http://h/", {{"HTTP_PROXY", "p:1"}, {"all_proxy", "p:3"}}),
            "p:3");
  EXPECT_EQ(Proxy("https://h/", {}), "");
  EXPECT_EQ(Proxy("http://h/", {{"http_proxy", "p:1"}, {"NO_PROXY", "h"}}), "");
}

TEST(ProxyTest, NoProxyNamesHostsDomainsAndBlocks) {
  EXPECT_TRUE(IsInNoProxy("h", "*"));
  EXPECT_FALSE(IsInNoProxy("h", "*,x"));
  EXPECT_FALSE(IsInNoProxy("h", ""));
  for (const char* list : {"example.com", ".example.com", "a, Example.COM.",
                           "a example.com", "hub.example.com"}) {
    EXPECT_TRUE(IsInNoProxy("hub.example.com", list)) << list;
    EXPECT_FALSE(IsInNoProxy("hubexample.com", list)) << list;
  }
  EXPECT_FALSE(IsInNoProxy("example.com", "hub.example.com, ., ,"));
  EXPECT_TRUE(IsInNoProxy("127.0.0.1", "10.0.0.0/8,127.0.0.1"));
  EXPECT_TRUE(IsInNoProxy("10.9.8.7", "10.0.0.0/8"));
  EXPECT_TRUE(IsInNoProxy("10.9.8.7", "0.0.0.0/0"));
  EXPECT_FALSE(IsInNoProxy("11.9.8.7", "10.0.0.0/8"));
  EXPECT_FALSE(IsInNoProxy("10.9.8.7", "10.0.0.0/33, 10.0.0.0/x, 10.0.0.0/"));
  EXPECT_FALSE(IsInNoProxy("10.9.8.7", "9.8.7"));
  EXPECT_TRUE(IsInNoProxy("[::1]", "::1"));
  EXPECT_TRUE(IsInNoProxy("[fd00::7]", "[fd00::7]"));
  EXPECT_TRUE(IsInNoProxy("[fd00::7]", "fd00::/8"));
  EXPECT_FALSE(IsInNoProxy("[fe00::7]", "fd00::/8,10.0.0.0/8"));
}

}  // namespace
}  // namespace weightfs
