#include "cache/http/url.h"

#include <curl/curl.h>

#include <cctype>
#include <cstring>
#include <memory>
#include <utility>

namespace weightfs {
namespace {

constexpr size_t kMaxUrlBytes = 32 << 10;

struct FreeCurlUrl {
  void operator()(CURLU* url) const { curl_url_cleanup(url); }
};
using CurlUrl = std::unique_ptr<CURLU, FreeCurlUrl>;

// The part as curl keeps it (encoded); empty if there is none.
std::string Part(CURLU* url, CURLUPart part, unsigned flags = 0) {
  char* text = nullptr;
  if (curl_url_get(url, part, &text, flags) != CURLUE_OK) return "";
  std::string value(text);
  curl_free(text);
  return value;
}

std::string Lower(std::string text) {
  for (char& c : text) {
    c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  return text;
}

bool IsUnreserved(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
         (c >= '0' && c <= '9') || std::strchr("-._~", c) != nullptr;
}

int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::string PercentDecode(std::string_view text) {
  std::string decoded;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size()) {
      const int high = HexValue(text[i + 1]);
      const int low = HexValue(text[i + 2]);
      if (high >= 0 && low >= 0) {
        decoded += static_cast<char>(high * 16 + low);
        i += 2;
        continue;
      }
    }
    decoded += text[i] == '+' ? ' ' : text[i];
  }
  return decoded;
}

// Bytes that no URL holds unencoded; a space is let through, since some servers
// send it in Location.
bool HasControlBytes(std::string_view text) {
  for (char c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return true;
  }
  return false;
}

// Without what stands before an `@` where a host may be: at the start, or after
// a scheme and as many slashes as somebody typed.
std::string WithoutUserInfo(std::string_view text) {
  std::string shown;
  for (bool host = true;;) {
    const size_t end = std::min(text.find('/'), text.size());
    std::string_view part = text.substr(0, end);
    if (host) part.remove_prefix(part.rfind('@') + 1);  // npos + 1 is 0
    shown += part;
    if (end == text.size()) return shown;
    shown += '/';
    text.remove_prefix(end + 1);
    host = part.empty() || part.ends_with(':');
  }
}

// libcurl 8.21 decodes a host's escapes, 7.88 and 8.14 refuse most: what such a
// name is must not hang on that. In brackets they name an IPv6 zone. The host
// is looked for where libcurl finds one: after a scheme's colon and any
// slashes, or after two of them.
bool HasEncodedHost(std::string_view text) {
  const size_t scheme = std::min(text.find_first_of(":/?#"), text.size());
  std::string_view rest = text.substr(scheme);
  const bool has_host =
      scheme > 0 ? rest.starts_with(":/") : rest.starts_with("//");
  if (!has_host) return false;
  rest.remove_prefix(std::min(rest.find_first_not_of(":/\\"), rest.size()));
  const std::string_view host = rest.substr(0, rest.find_first_of("/?#\\["));
  return host.find('%') != std::string_view::npos;
}

Error NotAUrl(std::string_view text, std::string_view why) {
  return MakeError(Code::kInvalid, "{}: {}", RedactUrl(text), why);
}

}  // namespace

Result<Url> Url::Parse(std::string_view text) {
  if (text.size() > kMaxUrlBytes) return NotAUrl(text, "URL too long");
  if (HasControlBytes(text)) return NotAUrl(text, "control bytes in a URL");
  if (HasEncodedHost(text)) return NotAUrl(text, "escapes in a host's name");
  const CurlUrl parsed(curl_url());
  if (parsed == nullptr) return NotAUrl(text, "out of memory");
  const std::string zero_ended(text);
  const CURLUcode code =
      curl_url_set(parsed.get(), CURLUPART_URL, zero_ended.c_str(),
                   CURLU_URLENCODE | CURLU_ALLOW_SPACE);
  if (code != CURLUE_OK) return NotAUrl(text, curl_url_strerror(code));
  Url url;
  url.scheme_ = Lower(Part(parsed.get(), CURLUPART_SCHEME));
  if (url.scheme_ != "http" && url.scheme_ != "https") {
    return NotAUrl(text, "neither http nor https");
  }
  if (!Part(parsed.get(), CURLUPART_USER).empty() ||
      !Part(parsed.get(), CURLUPART_PASSWORD).empty()) {
    return NotAUrl(text, "a URL with a user name or password");
  }
  url.host_ = Lower(Part(parsed.get(), CURLUPART_HOST));
  const std::string port =
      Part(parsed.get(), CURLUPART_PORT, CURLU_DEFAULT_PORT);
  if (url.host_.empty() || port.empty() || port.size() > 5) {
    return NotAUrl(text, "a URL without a host");
  }
  url.port_ = static_cast<uint16_t>(std::stoul(port));
  url.path_ = Part(parsed.get(), CURLUPART_PATH);
  if (url.path_.empty()) url.path_ = "/";
  url.query_ = Part(parsed.get(), CURLUPART_QUERY);
  // An escape in a host may decode to what means another one when it is sent.
  const CurlUrl sent(curl_url());
  if (sent == nullptr ||
      curl_url_set(sent.get(), CURLUPART_URL, url.ToString().c_str(), 0) !=
          CURLUE_OK ||
      Lower(Part(sent.get(), CURLUPART_HOST)) != url.host_) {
    return NotAUrl(text, "a host that hides another");
  }
  return url;
}

Result<Url> Url::Resolve(std::string_view reference) const {
  if (reference.size() > kMaxUrlBytes || HasControlBytes(reference)) {
    return NotAUrl(reference, "not a URL to go to");
  }
  if (HasEncodedHost(reference)) {
    return NotAUrl(reference, "escapes in a host's name");
  }
  const CurlUrl joined(curl_url());
  const std::string base = ToString();
  const std::string target(reference);
  if (joined == nullptr ||
      curl_url_set(joined.get(), CURLUPART_URL, base.c_str(), 0) != CURLUE_OK) {
    return NotAUrl(base, "not a URL");
  }
  const CURLUcode code =
      curl_url_set(joined.get(), CURLUPART_URL, target.c_str(),
                   CURLU_URLENCODE | CURLU_ALLOW_SPACE);
  if (code != CURLUE_OK) return NotAUrl(reference, curl_url_strerror(code));
  return Parse(Part(joined.get(), CURLUPART_URL));
}

std::string Url::Origin() const {
  const bool is_default = port_ == (scheme_ == "https" ? 443 : 80);
  std::string origin = scheme_ + "://" + host_;
  if (!is_default) origin += ":" + std::to_string(port_);
  return origin;
}

std::string Url::ToString() const {
  std::string text = Origin() + path_;
  if (!query_.empty()) text += "?" + query_;
  return text;
}

std::optional<std::string> Url::QueryValue(std::string_view name) const {
  std::string_view rest = query_;
  while (!rest.empty()) {
    const size_t end = std::min(rest.find('&'), rest.size());
    const std::string_view pair = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    const size_t equals = std::min(pair.find('='), pair.size());
    if (PercentDecode(pair.substr(0, equals)) != name) continue;
    return PercentDecode(pair.substr(std::min(equals + 1, pair.size())));
  }
  return std::nullopt;
}

Url Url::WithPath(std::string path) const {
  Url url = *this;
  url.path_ = std::move(path);
  return url;
}

Url Url::WithQuery(std::string query) const {
  Url url = *this;
  url.query_ = std::move(query);
  return url;
}

std::string UrlEncode(std::string_view text, std::string_view safe) {
  static constexpr char kHex[] = "0123456789ABCDEF";
  std::string encoded;
  encoded.reserve(text.size());
  for (char c : text) {
    if (c != '\0' &&
        (IsUnreserved(c) || safe.find(c) != std::string_view::npos)) {
      encoded += c;
      continue;
    }
    const auto byte = static_cast<unsigned char>(c);
    encoded += '%';
    encoded += kHex[byte >> 4];
    encoded += kHex[byte & 15];
  }
  return encoded;
}

std::string RedactUrl(std::string_view text) {
  constexpr size_t kMaxShown = 400;
  std::string shown = WithoutUserInfo(text.substr(0, text.find_first_of("?#")));
  for (char& c : shown) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  if (shown.size() > kMaxShown) shown = shown.substr(0, kMaxShown) + "...";
  return shown;
}

}  // namespace weightfs
