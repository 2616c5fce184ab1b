// Url: an http or https URL taken apart by the same parser that connects, so
// that "is this the host the token is for" and "who gets the request" never
// differ. Immutable values, safe to copy between threads.

#ifndef WEIGHTFS_CACHE_HTTP_URL_H_
#define WEIGHTFS_CACHE_HTTP_URL_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "formats/base/result.h"

namespace weightfs {

class Url {
 public:
  // kInvalid unless it is an absolute http or https URL without user name and
  // password. The fragment is dropped. Messages hold neither query nor
  // password.
  static Result<Url> Parse(std::string_view text);
  // What `reference` (a Location or Link target) means at this URL: absolute,
  // or relative to it. The reference's query is kept.
  Result<Url> Resolve(std::string_view reference) const;

  const std::string& scheme() const { return scheme_; }  // lower case
  const std::string& host() const { return host_; }      // lower case
  uint16_t port() const { return port_; }
  const std::string& path() const { return path_; }    // "/…", encoded
  const std::string& query() const { return query_; }  // without the '?'

  bool SameOrigin(const Url& other) const {
    return scheme_ == other.scheme_ && host_ == other.host_ &&
           port_ == other.port_;
  }
  // "https://host" or "https://host:port".
  std::string Origin() const;
  // With its query: for sending, never for a message.
  std::string ToString() const;
  // Without its query: for messages.
  std::string Redacted() const { return Origin() + path_; }
  // The value of a query parameter (case-sensitive), percent-decoded; nothing
  // if absent.
  std::optional<std::string> QueryValue(std::string_view name) const;

  // This URL with another path or query, which must be encoded already.
  Url WithPath(std::string path) const;
  Url WithQuery(std::string query) const;

 private:
  std::string scheme_;
  std::string host_;
  uint16_t port_ = 0;
  std::string path_;
  std::string query_;
};

// Percent-encodes every byte but letters, digits, `-._~` and those of `safe`.
std::string UrlEncode(std::string_view text, std::string_view safe = "");

// Any text that may be a URL, without user name, password, query and fragment.
std::string RedactUrl(std::string_view text);

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_HTTP_URL_H_
