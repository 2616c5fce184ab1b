// SignedUrls: where the bytes of each file were found last. The Hub redirects
// big files to signed URLs of another host that work for about an hour; asking
// the Hub again for each range would use up its quota. One asks, the others
// wait for its answer.
//
// Thread-safety: none; used on the HTTP client's loop thread only.

#ifndef WEIGHTFS_CACHE_HUB_SIGNED_URLS_H_
#define WEIGHTFS_CACHE_HUB_SIGNED_URLS_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "cache/http/http_client.h"
#include "cache/http/url.h"
#include "formats/base/clock.h"
#include "formats/base/error.h"

namespace weightfs {

// How long the signature in `url` holds from `now` on, by its X-Amz-Date and
// X-Amz-Expires (or X-Goog-…), or its Expires; nothing if it does not say.
// Negative: it ran out.
std::optional<std::chrono::seconds> SignatureLife(const Url& url,
                                                  Clock::WallTime now);

class SignedUrls {
 public:
  // What a fetch that wants a file's bytes should do.
  struct Lead {
    enum class Kind {
      kUse,     // get them at `url`
      kAsk,     // ask the Hub, then Put, PutDirect or Fail
      kDirect,  // ask the Hub, which serves this file itself
      kFailed,  // who asked the Hub got `error`
    };
    Kind kind = Kind::kAsk;
    std::optional<Url> url;
    uint64_t generation = 0;  // of `url`, for Drop
    // Of a request to `url`.
    HttpReach reach = HttpReach::kAnywhere;
    std::optional<Error> error;
  };
  using Waiter = std::function<void(const Lead&)>;

  explicit SignedUrls(const Clock& clock) : clock_(clock) {}

  // Nothing: somebody asks the Hub at the moment, and `waiter` will be run.
  std::optional<Lead> Take(const std::string& path, Waiter waiter);
  // The file's bytes are at `url`, found by an answer whose Date was `now`.
  // `reach`: what the chain that found it might reach. Returns the URL's
  // generation.
  uint64_t Put(const std::string& path, const Url& url, Clock::WallTime now,
               HttpReach reach = HttpReach::kAnywhere);
  // The Hub serves the file itself.
  void PutDirect(const std::string& path);
  // Who had to ask could not tell. kCancelled: another waiter asks instead;
  // else all waiters fail alike.
  void Fail(const std::string& path, const Error& error);
  // That URL does not work any more.
  void Drop(const std::string& path, uint64_t generation);

 private:
  // Transitions of `asking`: Take sets it, Put, PutDirect and Fail clear it.
  struct Entry {
    std::optional<Url> url;
    uint64_t generation = 0;
    HttpReach reach = HttpReach::kAnywhere;
    bool direct = false;
    Clock::Time expires;  // of url or direct
    Clock::Time refresh;  // from then on one fetch asks anew
    bool asking = false;
    std::vector<Waiter> waiters;
  };

  void Wake(const std::string& path, const Lead& lead);

  const Clock& clock_;
  uint64_t next_generation_ = 1;
  std::map<std::string, Entry> entries_;  // no more than files
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_HUB_SIGNED_URLS_H_
