// Fuzzes http_fields.h: the input is a response's headers, a line each, whose
// values are tried as every kind of field, too. Whatever the bytes: no crash;
// what is accepted obeys the header's rules.

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

#include "cache/http/http_fields.h"

namespace {

using namespace weightfs;  // NOLINT(google-build-using-namespace): a program

using std::chrono::system_clock;

void Require(bool condition) {
  if (!condition) std::abort();
}

void CheckRange(std::string_view value) {
  const auto range = ParseContentRange(value);
  if (!range) return;
  Require(range->first <= range->last);
  Require(!range->total || range->last < *range->total);
  const auto again = ParseContentRange(fmt::format(
      "bytes {}-{}/{}", range->first, range->last,
      range->total ? std::to_string(*range->total) : std::string("*")));
  Require(again && again->first == range->first && again->last == range->last &&
          again->total == range->total);
}

void CheckValue(std::string_view value) {
  CheckRange(value);
  if (const auto number = ParseDecimal(value)) {
    Require(ParseDecimal(std::to_string(*number)) == number);
    Require(std::all_of(value.begin(), value.end(),
                        [](char c) { return c >= '0' && c <= '9'; }));
  }
  static_cast<void>(ParseHttpDate(value));
  const std::string_view etag = NormalizeEtag(value);
  Require(etag.size() <= value.size());
  Require(value.find(etag) != std::string_view::npos);
  const std::string shown = PrintableText(value);
  Require(shown.size() <= 303);
  Require(std::all_of(shown.begin(), shown.end(),
                      [](char c) { return c >= 0x20 && c < 0x7f; }));
}

void CheckResponse(const HttpResponse& response, system_clock::time_point now) {
  const auto wait = RetryAfter(response, now);
  if (wait) {
    Require(*wait >= std::chrono::milliseconds(0));
    Require(*wait <= std::chrono::hours(1));
  }
  // The longest of several.
  HttpResponse more = response;
  more.headers.emplace_back("Retry-After", "7");
  Require(RetryAfter(more, now) ==
          std::max(wait, std::optional(std::chrono::milliseconds(7'000))));
  if (const auto link = NextLink(response)) {
    Require(std::any_of(response.headers.begin(), response.headers.end(),
                        [&](const auto& header) {
                          return header.second.find("<" + *link + ">") !=
                                 std::string::npos;
                        }));
  }
  if (const auto length = ContentLength(response)) {
    Require(ParseDecimal(*response.Header("Content-Length")) == length);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(data, data + size);
  HttpResponse response{429, {}};
  std::string_view rest = text;
  while (!rest.empty()) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    const std::string_view line = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    const size_t colon = std::min(line.find(": "), line.size());
    std::string_view value = line.substr(std::min(colon + 2, line.size()));
    // As HTTP has it: white space around a value is none of it.
    value.remove_prefix(std::min(value.find_first_not_of(" \t"), value.size()));
    value = value.substr(0, value.find_last_not_of(" \t") + 1);
    CheckValue(value);
    response.headers.emplace_back(line.substr(0, colon), value);
  }
  // Any day, and the first and the last that a clock can show.
  CheckResponse(response, system_clock::from_time_t(1'785'000'000));
  CheckResponse(response, system_clock::from_time_t(0));
  CheckResponse(response, system_clock::time_point::max());
  return 0;
}
