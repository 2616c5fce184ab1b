// The Hub's URLs: which are asked, and where a redirect may lead. Pure
// functions.

#ifndef WEIGHTFS_CACHE_HUB_HUB_URL_H_
#define WEIGHTFS_CACHE_HUB_HUB_URL_H_

#include <set>
#include <string>
#include <string_view>

#include "cache/http/http_client.h"
#include "cache/http/url.h"
#include "formats/base/result.h"

namespace weightfs {

// HF_ENDPOINT as a URL whose path is empty or a mirror's prefix without a
// slash at its end. kInvalid if it is none.
Result<Url> ParseHubEndpoint(std::string_view text);
// As in messages and as the namespace of the cache: "https://host/prefix".
std::string EndpointName(const Url& endpoint);

// "org/name" or "name" as the Hub allows them.
Result<> CheckHubRepoId(std::string_view id);
// A branch, tag, "refs/pr/1" or commit that git could have.
Result<> CheckRevision(std::string_view revision);

Url HubInfoUrl(const Url& endpoint, std::string_view id,
               std::string_view revision);
Url HubTreeUrl(const Url& endpoint, std::string_view id,
               std::string_view commit);
Url HubResolveUrl(const Url& endpoint, std::string_view id,
                  std::string_view commit, std::string_view path);

// The page after `page`, given the target of its Link rel="next": that target's
// query on `page`'s own address, whatever host the Hub thinks it has.
Result<Url> HubNextPage(const Url& page, std::string_view link);

// Follows one chain of redirects.
class HubRedirects {
 public:
  enum class Start {
    kAtEndpoint,  // with a URL of the endpoint's
    kElsewhere,   // with one that an earlier chain led to: never the token
  };
  // `reach`: what the chain may lead to. Once a server that is public has
  // answered, that is only what is public, too.
  HubRedirects(const Url& endpoint, Url url, Start start,
               HttpReach reach = HttpReach::kAnywhere);

  const Url& url() const { return url_; }
  // False for good once the chain left the endpoint's scheme, host and port:
  // the token may not be sent any more.
  bool at_endpoint() const { return at_endpoint_; }
  // For the request to url().
  HttpReach reach() const { return reach_; }
  // Goes where `response`, a redirect, says. kUnavailable: too many, or in a
  // circle, or to nowhere. kDenied: from https to http, or from a public server
  // to what is not.
  Result<> Follow(const HttpResponse& response);

 private:
  Url endpoint_;
  Url url_;
  bool at_endpoint_ = true;
  HttpReach reach_ = HttpReach::kAnywhere;
  std::set<std::string> visited_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_HUB_HUB_URL_H_
