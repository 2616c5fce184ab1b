// What an error answer of the Hub means to a person, and to a program.

#ifndef WEIGHTFS_CACHE_HUB_HUB_ERROR_H_
#define WEIGHTFS_CACHE_HUB_HUB_ERROR_H_

#include <optional>
#include <string>
#include <string_view>

#include "cache/http/http_client.h"
#include "formats/base/result.h"

namespace weightfs {

// Whom the request was for; what the message needs.
struct HubCall {
  std::string endpoint;      // "https://huggingface.co"
  std::string repo;          // "org/name"
  std::string revision;      // as asked for
  std::string subject;       // of the message: a URL, or a file and a range
  std::string token_source;  // TokenProvider::Source()
  std::optional<std::string> token;  // that was sent; never in the message
};

// The Error for `response`, whose status is 400 or more. `body` may be cut.
Error HubError(const HubCall& call, const HttpResponse& response,
               std::string_view body);

// kDenied if the token holds bytes that no header can (a pasted line break).
Result<> CheckToken(const std::optional<std::string>& token,
                    std::string_view source);

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_HUB_HUB_ERROR_H_
