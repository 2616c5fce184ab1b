// Parsers for the HTTP header fields that decide which bytes are taken and
// where the next request goes. Pure functions over hostile text: what does not
// follow the grammar is nothing, never a guess.

#ifndef WEIGHTFS_CACHE_HTTP_HTTP_FIELDS_H_
#define WEIGHTFS_CACHE_HTTP_HTTP_FIELDS_H_

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "cache/http/http_client.h"

namespace weightfs {

// Decimal digits only, all of `text`, no overflow.
std::optional<uint64_t> ParseDecimal(std::string_view text);

// "bytes FIRST-LAST/TOTAL" (RFC 9110 §14.4).
struct ContentRange {
  uint64_t first = 0;
  uint64_t last = 0;              // inclusive, >= first
  std::optional<uint64_t> total;  // nothing for "*"; else > last
};
std::optional<ContentRange> ParseContentRange(std::string_view text);

// The target of the first link with rel="next" (RFC 8288) among all Link
// headers; nothing if there is none.
std::optional<std::string> NextLink(const HttpResponse& response);

// The announced length of the body; nothing if absent or malformed, or if
// several contradict each other.
std::optional<uint64_t> ContentLength(const HttpResponse& response);

// How long the server wants the next request to wait; the longest where it says
// so several times. At most an hour; what is over a day is a mistake of the
// server's, and not believed. Read are
//   Retry-After: 7                        or an HTTP date, against `now`
//   RateLimit: "api";r=0;t=55, …          56 s; what has r > 0 left is no limit
//   RateLimit: limit=9, remaining=0, reset=55      (older drafts of the same)
//   RateLimit-Remaining: 0, RateLimit-Reset: 55
std::optional<std::chrono::milliseconds> RetryAfter(
    const HttpResponse& response, std::chrono::system_clock::time_point now =
                                      std::chrono::system_clock::now());

// True for statuses of 400 and more that may be others a while later.
bool IsPassing(int status);

// An HTTP date; nothing if it is none, or not in 1970 to 2261.
std::optional<std::chrono::system_clock::time_point> ParseHttpDate(
    std::string_view text);

// An ETag without its W/ and quotes.
std::string_view NormalizeEtag(std::string_view etag);

// Text of a server for a message: control bytes replaced, at most 300 bytes.
// Where it repeats `secret`, that is "[token]".
std::string PrintableText(std::string_view text, std::string_view secret = "");

// True for 301, 302, 303, 307 and 308.
bool IsRedirect(int status);

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_HTTP_HTTP_FIELDS_H_
