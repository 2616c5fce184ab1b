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

// How long the server wants the next request to wait: Retry-After in seconds,
// or `RateLimit: "api";r=0;t=55`, which is 55 + 1 s; the longer one where both
// are there. At most an hour.
std::optional<std::chrono::milliseconds> RetryAfter(
    const HttpResponse& response);

// An HTTP date; nothing if it is none.
std::optional<std::chrono::system_clock::time_point> ParseHttpDate(
    std::string_view text);

// An ETag without its W/ and quotes.
std::string_view NormalizeEtag(std::string_view etag);

// Text of a server for a message: control bytes replaced, at most 300 bytes.
std::string PrintableText(std::string_view text);

// True for 301, 302, 303, 307 and 308.
bool IsRedirect(int status);

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_HTTP_HTTP_FIELDS_H_
