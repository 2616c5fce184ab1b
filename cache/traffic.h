// Traffic: what a FetchCore knows of the way to its origin: when to ask again,
// how fast is usual, how much at once. Guarded by FetchCore's mutex.

#ifndef WEIGHTFS_CACHE_TRAFFIC_H_
#define WEIGHTFS_CACHE_TRAFFIC_H_

#include "cache/concurrency.h"
#include "cache/fetcher.h"
#include "cache/origin_health.h"
#include "cache/pace.h"
#include "cache/rate_limit.h"

namespace weightfs {

struct Traffic {
  explicit Traffic(const FetcherOptions& options)
      : health(options.first_backoff, options.max_backoff, options.seed),
        concurrency(options.connections, options.most_connections),
        rate(options.max_rate) {}

  // Connections that prefetch leaves to demand.
  size_t Reserve() const {
    const size_t limit = concurrency.limit();
    return limit < 2 ? 0 : std::max<size_t>(1, limit / 4);
  }

  OriginHealth health;
  Pace pace;
  Concurrency concurrency;
  RateLimit rate;
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_TRAFFIC_H_
