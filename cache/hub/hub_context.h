// What listing and fetching of one Hub repository share. Immutable; what it
// borrows outlives it (CreateHubOrigin).

#ifndef WEIGHTFS_CACHE_HUB_HUB_CONTEXT_H_
#define WEIGHTFS_CACHE_HUB_HUB_CONTEXT_H_

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "cache/http/http_client.h"
#include "cache/http/url.h"
#include "cache/hub/hub_error.h"
#include "cache/hub/hub_origin.h"
#include "cache/hub/token.h"
#include "formats/base/clock.h"

namespace weightfs {

// Fewer bytes than these in so long a time are a dead connection: a trickle
// must not hold one for ever.
inline uint64_t LeastBytes(std::chrono::milliseconds time) {
  constexpr uint64_t kPerSecond = 1024;
  const auto seconds = std::chrono::floor<std::chrono::seconds>(time).count();
  return std::max<uint64_t>(1, kPerSecond * static_cast<uint64_t>(seconds));
}

struct HubContext {
  HubOptions options;
  Url endpoint;
  std::string endpoint_name;  // also the cache's namespace
  std::string name;           // endpoint_name "/" repo
  HttpClient& http;
  TokenProvider& token_provider;
  const Clock& clock;

  HubCall Call(std::string subject, std::optional<std::string> token) const {
    return HubCall{endpoint_name,           options.repo,
                   options.revision,        std::move(subject),
                   token_provider.Source(), std::move(token)};
  }
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_HUB_HUB_CONTEXT_H_
