// Fuzzes url.h, proxy.h and hub_url.h. The first line is an endpoint, each of
// the others where it redirects to next (Location), or which page comes next
// (Link). Whatever the bytes: no crash; what is accepted obeys the headers'
// rules; the token stays at the endpoint; a public server leads to no address
// of this network.

#include <netdb.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "cache/http/address.h"
#include "cache/http/proxy.h"
#include "cache/http/url.h"
#include "cache/hub/hub_url.h"

namespace {

using namespace weightfs;  // NOLINT(google-build-using-namespace): a program

void Require(bool condition) {
  if (!condition) std::abort();
}

void CheckRedacted(std::string_view shown) {
  Require(shown.find_first_of("?#") == std::string_view::npos);
  for (const char c : shown) {
    Require(static_cast<unsigned char>(c) >= 0x20 && c != 0x7f);
  }
}

// A host that names an address without a look-up is told by that address,
// however it is written.
void CheckAddress(std::string host) {
  if (host.find('\0') != std::string::npos) return;
  if (host.starts_with('[') && host.ends_with(']')) {
    host = host.substr(1, host.size() - 2);
  }
  addrinfo hints{};
  hints.ai_flags = AI_NUMERICHOST;
  addrinfo* found = nullptr;
  if (::getaddrinfo(host.c_str(), nullptr, &hints, &found) != 0) return;
  Require(KindOfHost(host) == (IsPublicAddress(*found->ai_addr)
                                   ? HostKind::kPublic
                                   : HostKind::kPrivate));
  ::freeaddrinfo(found);
}

void CheckUrl(const Url& url) {
  Require(url.scheme() == "http" || url.scheme() == "https");
  Require(!url.host().empty() && url.path().starts_with('/'));
  Require(url.host().find_first_of("/@?#\\ \t\r\n") == std::string::npos);
  CheckRedacted(url.Redacted());
  const auto again = Url::Parse(url.ToString());
  Require(again.has_value());
  Require(again->SameOrigin(url) && again->path() == url.path() &&
          again->query() == url.query());
  static_cast<void>(url.QueryValue("X-Amz-Date"));
  CheckAddress(url.host());
}

// The text with a password put where it would be one.
void CheckPassword(const std::string& text) {
  const size_t slash = text.find('/');
  size_t host = 0;
  if (slash != std::string::npos && slash > 0 && text[slash - 1] == ':') {
    host = std::min(text.find_first_not_of('/', slash), text.size());
  }
  if (text.find_first_of("?#") < host || text.find("pa55") != text.npos) return;
  const std::string with =
      text.substr(0, host) + "user:pa55word@" + text.substr(host);
  Require(RedactUrl(with).find("pa55word") == std::string::npos);
  const auto parsed = Url::Parse(with);
  Require(!parsed.has_value() &&
          parsed.error().message().find("pa55word") == std::string::npos);
}

// "?" stands for control bytes, too.
void CheckText(const std::string& text) {
  const bool clean = std::none_of(text.begin(), text.end(), [](char c) {
    return static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
  });
  if (clean) CheckRedacted(RedactUrl(text));
  CheckPassword(text);
  CheckAddress(text);
  const auto url = Url::Parse(text);
  if (url.has_value()) CheckUrl(*url);
  static_cast<void>(IsInNoProxy("hub.test", text));
  static_cast<void>(IsInNoProxy("[fd00::1]", text));
  if (CheckHubRepoId(text).has_value() && CheckRevision(text).has_value()) {
    const Url endpoint = *Url::Parse("https://hub.test/prefix");
    const Url resolved = HubResolveUrl(endpoint, text, text, text);
    CheckUrl(resolved);
    Require(resolved.SameOrigin(endpoint) &&
            resolved.path().starts_with("/prefix/"));
  }
}

void CheckPages(const Url& endpoint, const std::string& link) {
  const Url page = HubTreeUrl(endpoint, "org/name", std::string(40, 'a'));
  const auto next = HubNextPage(page, link);
  if (!next.has_value()) return;
  CheckUrl(*next);
  Require(next->SameOrigin(page) && next->path() == page.path() &&
          !next->query().empty());
}

void CheckChain(const Url& endpoint, const std::vector<std::string>& targets,
                HttpReach from) {
  HubRedirects chain(endpoint, endpoint, HubRedirects::Start::kAtEndpoint);
  bool left = false;
  for (const std::string& target : targets) {
    const std::string before = chain.url().ToString();
    const bool secure = chain.url().scheme() == "https";
    if (!chain.Follow({302, {{"Location", target}}, from}).has_value()) {
      Require(chain.url().ToString() == before);
      return;
    }
    CheckUrl(chain.url());
    Require(chain.url().ToString() != before);
    Require(!secure || chain.url().scheme() == "https");
    left = left || !chain.url().SameOrigin(endpoint);
    Require(chain.at_endpoint() == !left);
    Require(chain.reach() == from);
    Require(from == HttpReach::kAnywhere ||
            KindOfHost(chain.url().host()) != HostKind::kPrivate);
  }
  Require(targets.size() <= 20);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<std::string> lines(1);
  for (size_t i = 0; i < size; ++i) {
    if (data[i] == '\n') {
      lines.emplace_back();
    } else {
      lines.back() += static_cast<char>(data[i]);
    }
  }
  for (const std::string& line : lines) CheckText(line);
  const auto endpoint = ParseHubEndpoint(lines[0]);
  if (!endpoint.has_value()) return 0;
  CheckUrl(*endpoint);
  lines.erase(lines.begin());
  for (const std::string& line : lines) {
    CheckPages(*endpoint, line);
    const auto resolved = endpoint->Resolve(line);
    if (resolved.has_value()) CheckUrl(*resolved);
  }
  CheckChain(*endpoint, lines, HttpReach::kAnywhere);
  CheckChain(*endpoint, lines, HttpReach::kPublic);
  return 0;
}
