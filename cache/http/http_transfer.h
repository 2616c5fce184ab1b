// One request as libcurl carries it out: its easy handle, what came of it so
// far, and its timeouts. Only for cache/http.
//
// Thread-safety: none; the loop thread's once it was handed over.

#ifndef WEIGHTFS_CACHE_HTTP_HTTP_TRANSFER_H_
#define WEIGHTFS_CACHE_HTTP_HTTP_TRANSFER_H_

#include <curl/curl.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "cache/http/address.h"
#include "cache/http/http_client.h"
#include "formats/base/result.h"

namespace weightfs {

struct FreeCurlEasy {
  void operator()(CURL* easy) const { curl_easy_cleanup(easy); }
};
struct FreeCurlList {
  void operator()(curl_slist* list) const { curl_slist_free_all(list); }
};
using CurlEasy = std::unique_ptr<CURL, FreeCurlEasy>;
using CurlList = std::unique_ptr<curl_slist, FreeCurlList>;

struct HttpTransfer {
  using Time = std::chrono::steady_clock::time_point;

  HttpId id = 0;
  HttpRequest request;
  std::shared_ptr<HttpHandler> handler;
  std::string origin;               // the connection limit counts by it
  HostKind host = HostKind::kName;  // of the URL
  std::string proxy;                // empty: none
  Time requested;
  Time started;
  CurlList headers;  // `easy` refers to it
  CurlEasy easy;     // null: waits for a connection
  std::array<char, CURL_ERROR_SIZE> curl_message{};

  HttpResponse response;
  size_t header_bytes = 0;
  bool responded = false;      // OnResponse was called
  bool connected = false;      // the stall timer runs
  std::optional<Error> error;  // why a callback of ours stopped the transfer
  bool kept_out = false;       // an address was not connected to: HttpReach
  uint64_t bytes = 0;          // received
  Time window_start;           // of the stall window
  uint64_t window_bytes = 0;   // `bytes` then

  // Makes `easy` report here. REQUIRES: this does not move any more.
  void SetCallbacks();
  void CountBytes(size_t count);
  // Whether the request may be sent over a connection to `address`, and what
  // its response may redirect to.
  bool TakeConnection(HostKind address);
  // What curl's end of the transfer means.
  Result<> ResultOf(CURLcode code) const;
  Error Fail(Code code, std::string_view what) const;

  // When the request has to be ended, and with what.
  Time Deadline() const;
  Error Overdue(Time now) const;
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_HTTP_HTTP_TRANSFER_H_
