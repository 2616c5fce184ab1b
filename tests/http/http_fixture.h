// What the tests of the HTTP client share: a client, a request, and a server
// that answers every request alike.

#ifndef WEIGHTFS_TESTS_HTTP_HTTP_FIXTURE_H_
#define WEIGHTFS_TESTS_HTTP_HTTP_FIXTURE_H_

#include <chrono>
#include <memory>
#include <string>
#include <utility>

#include "cache/http/http_client.h"
#include "tests/http/raw_server.h"
#include "tests/support/matchers.h"

namespace weightfs {

inline std::unique_ptr<HttpClient> MakeClient(size_t connections = 16) {
  auto client = HttpClient::Create({"weightfs-test", connections});
  EXPECT_OK(client);
  return std::move(client).value();
}

inline HttpRequest Get(std::string url) {
  HttpRequest request;
  request.url = std::move(url);
  request.connect_timeout = std::chrono::milliseconds(20'000);
  request.stall_timeout = std::chrono::milliseconds(20'000);
  return request;
}

// Answers every request of every connection alike.
inline RawServer::Script Always(std::string answer) {
  return [answer = std::move(answer)](RawConnection& connection) {
    while (!connection.ReadHead().empty()) connection.Send(answer);
  };
}

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_HTTP_HTTP_FIXTURE_H_
