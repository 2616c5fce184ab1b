#include "cache/hub/hub_url.h"

#include <algorithm>
#include <utility>

#include "cache/http/address.h"
#include "cache/http/http_fields.h"

namespace weightfs {
namespace {

constexpr size_t kMaxRedirects = 20;  // as the Hub's own clients
constexpr size_t kMaxRepoId = 200;
constexpr size_t kMaxRevision = 1024;

bool IsNameByte(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
         (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
}

bool IsRepoName(std::string_view name) {
  return !name.empty() && std::all_of(name.begin(), name.end(), IsNameByte) &&
         name.front() != '.' && name.front() != '-' && name.back() != '.' &&
         name.back() != '-';
}

Url AtEndpoint(const Url& endpoint, const std::string& path) {
  const std::string prefix = endpoint.path() == "/" ? "" : endpoint.path();
  return endpoint.WithPath(prefix + path);
}

}  // namespace

Result<Url> ParseHubEndpoint(std::string_view text) {
  auto url = Url::Parse(text);
  if (!url) return std::move(url).error().AddContext("endpoint");
  if (!url->query().empty()) {
    return MakeError(Code::kInvalid, "endpoint: {} has a query",
                     url->Redacted());
  }
  std::string path = url->path();
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return url->WithPath(std::move(path));
}

std::string EndpointName(const Url& endpoint) {
  return endpoint.Origin() + (endpoint.path() == "/" ? "" : endpoint.path());
}

Result<> CheckHubRepoId(std::string_view id) {
  const size_t slash = id.find('/');
  const bool well_formed =
      slash == std::string_view::npos
          ? IsRepoName(id)
          : IsRepoName(id.substr(0, slash)) && IsRepoName(id.substr(slash + 1));
  if (!well_formed || id.size() > kMaxRepoId ||
      id.find("--") != std::string_view::npos ||
      id.find("..") != std::string_view::npos) {
    return MakeError(Code::kInvalid,
                     "\"{}\" is not a repository: it must be NAME or ORG/NAME, "
                     "of letters, digits, \"-\", \"_\" and \".\"",
                     PrintableText(id));
  }
  return {};
}

Result<> CheckRevision(std::string_view revision) {
  const bool clean = std::none_of(revision.begin(), revision.end(), [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte <= 0x20 || byte == 0x7f || c == '\\' || c == '?' || c == '*' ||
           c == '[' || c == '^' || c == '~' || c == ':';
  });
  if (revision.empty() || revision.size() > kMaxRevision || !clean ||
      revision.front() == '/' || revision.back() == '/' ||
      revision.find("..") != std::string_view::npos ||
      revision.find("//") != std::string_view::npos) {
    return MakeError(Code::kInvalid,
                     "\"{}\" cannot be a branch, a tag or a commit",
                     PrintableText(revision));
  }
  return {};
}

Url HubInfoUrl(const Url& endpoint, std::string_view id,
               std::string_view revision) {
  return AtEndpoint(endpoint, "/api/models/" + UrlEncode(id, "/") +
                                  "/revision/" + UrlEncode(revision));
}

Url HubTreeUrl(const Url& endpoint, std::string_view id,
               std::string_view commit) {
  return AtEndpoint(endpoint, "/api/models/" + UrlEncode(id, "/") + "/tree/" +
                                  UrlEncode(commit))
      .WithQuery("recursive=true&expand=false");
}

Url HubResolveUrl(const Url& endpoint, std::string_view id,
                  std::string_view commit, std::string_view path) {
  return AtEndpoint(endpoint, "/" + UrlEncode(id, "/") + "/resolve/" +
                                  UrlEncode(commit) + "/" +
                                  UrlEncode(path, "/"));
}

Result<Url> HubNextPage(const Url& page, std::string_view link) {
  ASSIGN_OR_RETURN(const Url next, page.Resolve(link));
  if (next.query().empty()) {
    return MakeError(Code::kCorrupt, "{}: a next page without a query",
                     page.Redacted());
  }
  return page.WithQuery(next.query());
}

HubRedirects::HubRedirects(const Url& endpoint, Url url, Start start,
                           HttpReach reach)
    : endpoint_(endpoint),
      url_(std::move(url)),
      at_endpoint_(start == Start::kAtEndpoint && url_.SameOrigin(endpoint_)),
      reach_(reach),
      visited_{url_.ToString()} {}

Result<> HubRedirects::Follow(const HttpResponse& response) {
  const auto location = response.Header("Location");
  if (!location) {
    return MakeError(Code::kUnavailable, "{}: HTTP {} without Location",
                     url_.Redacted(), response.status);
  }
  auto target = url_.Resolve(*location);
  if (!target) {
    return MakeError(Code::kUnavailable, "{}: redirected to what is no URL: {}",
                     url_.Redacted(), target.error().message());
  }
  if (url_.scheme() == "https" && target->scheme() == "http") {
    return MakeError(Code::kDenied,
                     "{}: refused to be redirected from https to {}",
                     url_.Redacted(), target->Redacted());
  }
  if (response.redirects == HttpReach::kPublic) reach_ = HttpReach::kPublic;
  // A name is judged by the address that it has when it is connected to.
  if (reach_ == HttpReach::kPublic &&
      KindOfHost(target->host()) == HostKind::kPrivate) {
    return MakeError(Code::kDenied,
                     "{}: refused to be redirected from a public server to {}, "
                     "of this machine or its network",
                     url_.Redacted(), target->Redacted());
  }
  if (visited_.size() > kMaxRedirects) {
    return MakeError(Code::kUnavailable, "{}: more than {} redirects",
                     url_.Redacted(), kMaxRedirects);
  }
  if (!visited_.insert(target->ToString()).second) {
    return MakeError(Code::kUnavailable, "{}: redirects in a circle",
                     target->Redacted());
  }
  at_endpoint_ = at_endpoint_ && target->SameOrigin(endpoint_);
  url_ = std::move(*target);
  return {};
}

}  // namespace weightfs
