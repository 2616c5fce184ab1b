// Where requests may not go, and what they do not take along.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <future>
#include <memory>
#include <string>
#include <utility>

#include "cache/http/http_client.h"
#include "tests/http/http_fixture.h"
#include "tests/http/raw_server.h"
#include "tests/support/matchers.h"

namespace weightfs {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(HttpReachTest, APublicReachEndsAtTheConnection) {
  RawServer server(Always("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"));
  auto client = MakeClient();
  // A name that leads here, as one does after a rebinding.
  const std::string by_name =
      "http://localhost:" + std::to_string(server.port()) + "/";
  for (const std::string& url : {server.Url("/"), by_name}) {
    HttpRequest request = Get(url);
    request.reach = HttpReach::kPublic;
    EXPECT_THAT(HttpFetch(*client, request, 10),
                AllOf(HasCode(Code::kDenied),
                      HasMessage(HasSubstr("this machine or its network"))));
    EXPECT_EQ(server.connections(), 0);
  }
  // Nor over a connection that another request opened.
  for (const std::string& url : {server.Url("/"), by_name}) {
    auto open = HttpFetch(*client, Get(url), 10);
    ASSERT_OK(open);
    EXPECT_EQ(open->response.redirects, HttpReach::kAnywhere);
    HttpRequest request = Get(url);
    request.reach = HttpReach::kPublic;
    EXPECT_THAT(HttpFetch(*client, request, 10), HasCode(Code::kDenied));
  }
}

TEST(HttpReachTest, BehindAProxyAddressesInTheUrlAreJudged) {
  RawServer proxy(Always("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"));
  ::setenv("http_proxy", proxy.Url("").c_str(), 1);
  auto client = MakeClient();
  const auto fetch = [&](const std::string& url) {
    HttpRequest request = Get(url);
    request.reach = HttpReach::kPublic;
    return HttpFetch(*client, request, 10);
  };
  for (const char* url : {"http://hub.invalid/", "http://203.0.113.7/"}) {
    auto reply = fetch(url);
    ASSERT_OK(reply) << url;
    // Though it came over loopback.
    EXPECT_EQ(reply->response.redirects, HttpReach::kPublic);
  }
  for (const char* url : {"http://169.254.169.254/", "http://localhost/",
                          "http://[::ffff:10.0.0.1]/", "http://0x7f000001/"}) {
    EXPECT_THAT(fetch(url), HasCode(Code::kDenied)) << url;
  }
  ::unsetenv("http_proxy");
}

TEST(HttpReachTest, NetrcIsNotRead) {
  std::promise<std::string> head;
  RawServer server([&](RawConnection& connection) {
    head.set_value(connection.ReadHead());
    connection.Send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
  });
  const std::string folder = ::testing::TempDir();
  std::ofstream(folder + "/.netrc") << "default login me password secret\n";
  const std::string home = ::getenv("HOME") == nullptr ? "" : ::getenv("HOME");
  ::setenv("HOME", folder.c_str(), 1);
  ASSERT_OK(HttpFetch(*MakeClient(), Get(server.Url("/")), 10));
  ::setenv("HOME", home.c_str(), 1);
  EXPECT_THAT(head.get_future().get(), Not(HasSubstr("Authorization")));
  ::unlink((folder + "/.netrc").c_str());
}

}  // namespace
}  // namespace weightfs
