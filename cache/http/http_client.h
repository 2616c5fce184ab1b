// HttpClient: HTTP requests over libcurl's multi interface, many at once, one
// loop thread. Redirects are not followed and nothing is retried: that is the
// caller's policy. HTTP/1.1 over many keep-alive connections, which spread over
// all addresses of the host's name where there are several at once.
//
// Thread-safety: safe for concurrent use.

#ifndef WEIGHTFS_CACHE_HTTP_HTTP_CLIENT_H_
#define WEIGHTFS_CACHE_HTTP_HTTP_CLIENT_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "formats/base/result.h"

namespace weightfs {

// A server that everybody can reach must not lead us to what only this machine
// or its network can.
enum class HttpReach {
  kAnywhere,
  // Where a connection would lead to another than a public address
  // (cache/http/address.h), none is made. Behind a proxy, which does the
  // look-ups, addresses in the URL are refused, and "localhost".
  kPublic,
};

struct HttpRequest {
  std::string method = "GET";  // or HEAD
  std::string url;
  std::vector<std::pair<std::string, std::string>> headers;
  std::chrono::milliseconds connect_timeout{10'000};
  // Fewer than `stall_bytes` in this long, once connected, end the request
  // (kUnavailable, "stalled").
  std::chrono::milliseconds stall_timeout{30'000};
  uint64_t stall_bytes = 1;  // headers count, too
  // The whole request, waiting for a connection included; 0: no limit.
  std::chrono::milliseconds total_timeout{0};
  HttpReach reach = HttpReach::kAnywhere;
};

struct HttpResponse {
  int status = 0;
  std::vector<std::pair<std::string, std::string>> headers;
  // What it may redirect to, by the address that it came from.
  HttpReach redirects = HttpReach::kAnywhere;
  // The first header of that name (case-insensitive); nothing if absent.
  std::optional<std::string_view> Header(std::string_view name) const;
  // False if headers of that name contradict each other.
  bool Agrees(std::string_view name) const;
};

// Takes one response. Calls come one at a time on the loop thread and must not
// block; they may start and cancel requests.
class HttpHandler {
 public:
  virtual ~HttpHandler() = default;
  // The final status line and headers. False stops: OnDone(kCancelled) follows.
  virtual bool OnResponse(const HttpResponse& response) = 0;
  // Body bytes, as on the wire (no content decoding). False stops.
  virtual bool OnBody(std::span<const std::byte> bytes) = 0;
  // The end, exactly once. OK: a response came, whatever its status, and its
  // body as long as it announced. kUnavailable: no connection, broken or
  // stalled. kDenied: the server's certificate is not trusted, or it is not to
  // be reached (HttpReach). kInvalid: not a request that can be sent. Messages
  // hold the URL without its query.
  virtual void OnDone(Result<> result) = 0;
};

using HttpId = uint64_t;  // never 0, never reused

struct HttpClientOptions {
  std::string user_agent;
  size_t connections_per_host = 16;  // requests over it wait, first come first
};

// Proxies come from the environment as for curl (http_proxy, HTTPS_PROXY,
// NO_PROXY, …), trusted certificates from CURL_CA_BUNDLE, REQUESTS_CA_BUNDLE,
// SSL_CERT_FILE and SSL_CERT_DIR, else the system's.
class HttpClient {
 public:
  // Starts the loop thread: not before the process has daemonised.
  static Result<std::unique_ptr<HttpClient>> Create(
      const HttpClientOptions& options);
  // Ends every request with kCancelled. Not to be called from a handler.
  virtual ~HttpClient() = default;

  virtual HttpId Start(HttpRequest request,
                       std::shared_ptr<HttpHandler> handler) = 0;
  // OnDone comes soon; unknown ids are ignored.
  virtual void Cancel(HttpId id) = 0;
  // Runs `task` on the loop thread, soon. It must not block.
  virtual void Post(std::function<void()> task) = 0;
};

struct HttpReply {
  HttpResponse response;
  std::string body;
};
// Sends and waits; not for the loop thread. A body over `max_body` bytes is
// kUnsupported.
Result<HttpReply> HttpFetch(HttpClient& client, HttpRequest request,
                            uint64_t max_body);

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_HTTP_HTTP_CLIENT_H_
