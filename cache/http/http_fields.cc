#include "cache/http/http_fields.h"

#include <curl/curl.h>
#include <strings.h>

#include <algorithm>
#include <charconv>

namespace weightfs {
namespace {

bool EqualsIgnoreCase(std::string_view a, std::string_view b) {
  return a.size() == b.size() && strncasecmp(a.data(), b.data(), a.size()) == 0;
}

std::string_view Trim(std::string_view text) {
  const size_t first = text.find_first_not_of(" \t");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

// Where the element that starts at the front of `text` ends: at the first
// `separator` that is not in quotes.
size_t ElementEnd(std::string_view text, char separator) {
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (quoted && text[i] == '\\') {
      ++i;
    } else if (text[i] == '"') {
      quoted = !quoted;
    } else if (!quoted && text[i] == separator) {
      return i;
    }
  }
  return text.size();
}

// True if the parameters of a link hold rel with the token `next`.
bool HasRelNext(std::string_view parameters) {
  while (!parameters.empty()) {
    const size_t end = ElementEnd(parameters, ';');
    const std::string_view pair = Trim(parameters.substr(0, end));
    parameters.remove_prefix(std::min(end + 1, parameters.size()));
    const size_t equals = pair.find('=');
    if (equals == std::string_view::npos ||
        !EqualsIgnoreCase(Trim(pair.substr(0, equals)), "rel")) {
      continue;
    }
    std::string_view value = Trim(pair.substr(equals + 1));
    if (value.size() >= 2 && value.front() == '"' && value.back() == '"') {
      value = value.substr(1, value.size() - 2);
    }
    while (!value.empty()) {
      const size_t space = std::min(value.find(' '), value.size());
      if (EqualsIgnoreCase(value.substr(0, space), "next")) return true;
      value.remove_prefix(std::min(space + 1, value.size()));
    }
    return false;  // a second rel is ignored, RFC 8288 §3.3
  }
  return false;
}

std::optional<std::string> NextLinkIn(std::string_view header) {
  while (true) {
    const size_t open = header.find('<');
    if (open == std::string_view::npos) return std::nullopt;
    const size_t close = header.find('>', open);
    if (close == std::string_view::npos) return std::nullopt;
    const std::string_view target = header.substr(open + 1, close - open - 1);
    header.remove_prefix(close + 1);
    const size_t end = ElementEnd(header, ',');
    if (HasRelNext(header.substr(0, end))) return std::string(target);
    header.remove_prefix(std::min(end + 1, header.size()));
  }
}

using Wait = std::optional<std::chrono::seconds>;

constexpr uint64_t kMostSeconds = 24 * 60 * 60;  // that are believed
constexpr std::chrono::hours kLongestWait{1};

// Nothing for what is not believed.
Wait Seconds(std::optional<uint64_t> seconds) {
  if (!seconds || *seconds > kMostSeconds) return std::nullopt;
  return std::chrono::seconds(*seconds);
}

// The value of the parameter of that name in `item`, such as `"api";r=0;t=55`.
std::optional<uint64_t> Parameter(std::string_view item, char separator,
                                  std::string_view name) {
  while (!item.empty()) {
    const size_t end = ElementEnd(item, separator);
    const std::string_view part = Trim(item.substr(0, end));
    item.remove_prefix(std::min(end + 1, item.size()));
    const size_t equals = part.find('=');
    if (equals != std::string_view::npos &&
        EqualsIgnoreCase(Trim(part.substr(0, equals)), name)) {
      return ParseDecimal(Trim(part.substr(equals + 1)));
    }
  }
  return std::nullopt;
}

// Until the quota that is used up is new again; the longest of several. A
// second more than said, since the server rounds.
Wait QuotaWait(std::optional<uint64_t> remaining, Wait reset) {
  if (remaining != uint64_t{0} || !reset) return std::nullopt;
  return *reset + std::chrono::seconds(1);
}

Wait RateLimitWait(std::string_view header) {
  Wait wait = QuotaWait(Parameter(header, ',', "remaining"),
                        Seconds(Parameter(header, ',', "reset")));
  while (!header.empty()) {
    const size_t end = ElementEnd(header, ',');
    const std::string_view item = header.substr(0, end);
    header.remove_prefix(std::min(end + 1, header.size()));
    wait = std::max(wait, QuotaWait(Parameter(item, ';', "r"),
                                    Seconds(Parameter(item, ';', "t"))));
  }
  return wait;
}

// Retry-After: seconds, or an HTTP date.
Wait AfterWait(std::string_view header, const HttpResponse& response,
               std::chrono::system_clock::time_point now) {
  const std::string_view text = Trim(header);
  if (const auto seconds = ParseDecimal(text)) return Seconds(seconds);
  const auto when = ParseHttpDate(text);
  if (!when) return std::nullopt;
  // By the server's own clock where it tells the time.
  const auto date = response.Header("Date");
  const auto at = date ? ParseHttpDate(*date) : std::nullopt;
  const auto left =
      std::chrono::ceil<std::chrono::seconds>(*when - at.value_or(now));
  return Seconds(static_cast<uint64_t>(std::max<int64_t>(left.count(), 0)));
}

}  // namespace

std::optional<uint64_t> ParseDecimal(std::string_view text) {
  uint64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (text.empty() || error != std::errc() || stop != end) return std::nullopt;
  return value;
}

std::optional<ContentRange> ParseContentRange(std::string_view text) {
  text = Trim(text);
  if (text.size() < 6 || !EqualsIgnoreCase(text.substr(0, 6), "bytes ")) {
    return std::nullopt;
  }
  text = Trim(text.substr(6));
  const size_t dash = text.find('-');
  const size_t slash = text.find('/');
  if (dash == std::string_view::npos || slash == std::string_view::npos ||
      slash < dash) {
    return std::nullopt;
  }
  const auto first = ParseDecimal(text.substr(0, dash));
  const auto last = ParseDecimal(text.substr(dash + 1, slash - dash - 1));
  if (!first || !last || *first > *last) return std::nullopt;
  ContentRange range{*first, *last, std::nullopt};
  if (text.substr(slash + 1) == "*") return range;
  range.total = ParseDecimal(text.substr(slash + 1));
  if (!range.total || *range.total <= *last) return std::nullopt;
  return range;
}

std::optional<std::string> NextLink(const HttpResponse& response) {
  for (const auto& [name, value] : response.headers) {
    if (!EqualsIgnoreCase(name, "Link")) continue;
    if (auto link = NextLinkIn(value)) return link;
  }
  return std::nullopt;
}

std::optional<uint64_t> ContentLength(const HttpResponse& response) {
  std::optional<uint64_t> length;
  for (const auto& [name, value] : response.headers) {
    if (!EqualsIgnoreCase(name, "Content-Length")) continue;
    const auto one = ParseDecimal(Trim(value));
    if (!one || (length && *length != *one)) return std::nullopt;
    length = one;
  }
  return length;
}

std::optional<std::chrono::milliseconds> RetryAfter(
    const HttpResponse& response, std::chrono::system_clock::time_point now) {
  Wait wait;
  std::optional<uint64_t> remaining;
  std::optional<uint64_t> reset;
  for (const auto& [name, value] : response.headers) {
    if (EqualsIgnoreCase(name, "RateLimit")) {
      wait = std::max(wait, RateLimitWait(value));
    } else if (EqualsIgnoreCase(name, "RateLimit-Remaining")) {
      remaining = ParseDecimal(Trim(value));
    } else if (EqualsIgnoreCase(name, "RateLimit-Reset")) {
      reset = ParseDecimal(Trim(value));
    } else if (EqualsIgnoreCase(name, "Retry-After")) {
      wait = std::max(wait, AfterWait(value, response, now));
    }
  }
  wait = std::max(wait, QuotaWait(remaining, Seconds(reset)));
  if (!wait) return std::nullopt;
  return std::min<std::chrono::seconds>(*wait, kLongestWait);
}

bool IsPassing(int status) {
  switch (status) {
    case 408:  // Request Timeout
    case 421:  // Misdirected Request: another connection may do
    case 425:  // Too Early
    case 429:  // Too Many Requests
      return true;
    default:
      return status >= 500;
  }
}

std::optional<std::chrono::system_clock::time_point> ParseHttpDate(
    std::string_view text) {
  const std::string zero_ended(text);
  const time_t seconds = curl_getdate(zero_ended.c_str(), nullptr);
  // The clock counts nanoseconds: it ends in 2262.
  constexpr auto kLast = std::chrono::duration_cast<std::chrono::seconds>(
      std::chrono::system_clock::duration::max());
  if (seconds < 0 || seconds > kLast.count()) return std::nullopt;
  return std::chrono::system_clock::from_time_t(seconds);
}

std::string_view NormalizeEtag(std::string_view etag) {
  etag = Trim(etag);
  if (etag.starts_with("W/")) etag.remove_prefix(2);
  if (etag.size() >= 2 && etag.front() == '"' && etag.back() == '"') {
    etag = etag.substr(1, etag.size() - 2);
  }
  return etag;
}

std::string PrintableText(std::string_view text, std::string_view secret) {
  constexpr size_t kMaxShown = 300;
  constexpr std::string_view kBlot = "[token]";
  std::string shown;
  // Before it is cut, which could leave a part of the secret.
  while (!secret.empty() && shown.size() <= kMaxShown) {
    const size_t at = text.find(secret);
    if (at == std::string_view::npos) break;
    shown += text.substr(0, at);
    shown += kBlot;
    text.remove_prefix(at + secret.size());
  }
  shown += text.substr(0, kMaxShown + 1);
  const bool cut = shown.size() > kMaxShown;
  shown.resize(std::min(shown.size(), kMaxShown));
  for (char& c : shown) {
    const auto byte = static_cast<unsigned char>(c);
    // C1 control bytes reach some terminals as single bytes; text that is not
    // ASCII is not worth the risk.
    if (byte < 0x20 || byte >= 0x7f) c = '?';
  }
  if (cut) shown += "...";
  return shown;
}

bool IsRedirect(int status) {
  return status == 301 || status == 302 || status == 303 || status == 307 ||
         status == 308;
}

}  // namespace weightfs
