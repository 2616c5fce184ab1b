// HubOrigin: a model repository of a Hugging Face Hub, or of a mirror that
// speaks its protocol, at one commit.
//
// Thread-safety: safe for concurrent use.

#ifndef WEIGHTFS_CACHE_HUB_HUB_ORIGIN_H_
#define WEIGHTFS_CACHE_HUB_HUB_ORIGIN_H_

#include <chrono>
#include <memory>
#include <string>

#include "cache/http/http_client.h"
#include "cache/hub/token.h"
#include "cache/origin.h"
#include "cache/snapshot_store.h"
#include "formats/base/clock.h"

namespace weightfs {

struct HubOptions {
  std::string endpoint = "https://huggingface.co";  // no trailing slash
  std::string repo;                                 // "org/name" or "name"
  std::string revision = "main";                    // branch, tag or commit
  bool offline = false;  // ask nobody; List uses what the store holds
  // List ends within it; each page of a listing of many has this long.
  std::chrono::milliseconds metadata_timeout{30'000};
  // Per request; HF_HUB_DOWNLOAD_TIMEOUT. No byte for this long: stalled.
  std::chrono::milliseconds stall_timeout{10'000};
  // How long List tries a Hub that does not answer when the store could do.
  std::chrono::milliseconds outage_patience{10'000};
  // Between List's tries, doubling, with jitter.
  std::chrono::milliseconds first_backoff{1'000};
  std::chrono::milliseconds max_backoff{8'000};
};

// List() resolves the revision to a commit and saves ref and listing in
// `store`; if the Hub cannot be reached (or `offline`), it takes the last ones
// saved, and says so in the log. An answer (denied, gated, missing) is an
// answer and never replaced by what was saved. Denied, gated, missing and
// rate-limited are told apart in code and message; a rate limit carries
// retry_after().
//
// Fetches before List() end with kInvalid, those of an `offline` origin with
// kOffline: a retry would not help. kStale: the Hub no longer has what the
// listing says. kUnavailable carries retry_after() where the server named one.
//
// The token goes to the endpoint's scheme, host and port and nowhere else.
//
// kInvalid for an endpoint, repo or revision that cannot be one. `http`,
// `token` and `store` (may be null) must outlive the origin. Its destructor
// cancels its fetches and waits for their OnDone; not for the http loop thread.
Result<std::unique_ptr<Origin>> CreateHubOrigin(
    const HubOptions& options, HttpClient& http, TokenProvider& token,
    SnapshotStore* store, const Clock& clock = Clock::System());

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_HUB_HUB_ORIGIN_H_
