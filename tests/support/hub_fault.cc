#include "tests/support/hub_fault.h"

#include <strings.h>

#include <algorithm>
#include <array>
#include <cstdio>

namespace weightfs {
namespace {

using FaultKind = TestHubFault::Kind;

constexpr std::array<std::pair<FaultKind, std::string_view>, 22> kNames = {{
    {FaultKind::kStatus, "status"},
    {FaultKind::kReset, "reset"},
    {FaultKind::kClose, "close"},
    {FaultKind::kHang, "hang"},
    {FaultKind::kNoAnswer, "no_answer"},
    {FaultKind::kLongBody, "long_body"},
    {FaultKind::kOverrun, "overrun"},
    {FaultKind::kRangeStart, "range_start"},
    {FaultKind::kRangeTotal, "range_total"},
    {FaultKind::kIgnoreRange, "ignore_range"},
    {FaultKind::kSetHeader, "set_header"},
    {FaultKind::kAddHeader, "add_header"},
    {FaultKind::kDropHeader, "drop_header"},
    {FaultKind::kTrickle, "trickle"},
    {FaultKind::kDelay, "delay"},
    {FaultKind::kRedirect, "redirect"},
    {FaultKind::kGzip, "gzip"},
    {FaultKind::kBody, "body"},
    {FaultKind::kFlipBit, "flip_bit"},
    {FaultKind::kOtherFile, "other_file"},
    {FaultKind::kRaw, "raw"},
    {FaultKind::kRunCallback, "callback"},
}};

// Whether an answer to that Range header holds a file's byte.
bool AsksFor(const std::string& range, uint64_t byte) {
  unsigned long long first = 0;  // NOLINT(google-runtime-int): sscanf's
  unsigned long long last = 0;   // NOLINT(google-runtime-int)
  if (std::sscanf(range.c_str(), "bytes=%llu-%llu", &first, &last) != 2) {
    return true;
  }
  return first <= byte && byte <= last;
}

TestHubFault Make(FaultKind kind, uint64_t number = 0, std::string text = "") {
  TestHubFault fault;
  fault.kind = kind;
  fault.number = number;
  fault.text = std::move(text);
  return fault;
}

}  // namespace

std::string TestHubRequest::Header(std::string_view name) const {
  for (const auto& [key, value] : headers) {
    if (key.size() == name.size() &&
        ::strncasecmp(key.data(), name.data(), name.size()) == 0) {
      return value;
    }
  }
  return "";
}

bool TestHubFilter::Matches(const TestHubRequest& request) const {
  return (listener == TestHubListener::kAny || listener == request.listener) &&
         (method.empty() || method == request.method) &&
         (status == 0 || status == request.status) &&
         (contains.empty() ||
          request.path.find(contains) != std::string::npos ||
          request.file.find(contains) != std::string::npos);
}

TestHubFault TestHubFault::Status(int status, TestHubHeaders headers,
                                  std::string body) {
  TestHubFault fault =
      Make(FaultKind::kStatus, static_cast<uint64_t>(status), std::move(body));
  fault.headers = std::move(headers);
  return fault;
}

TestHubFault TestHubFault::RateLimited(int retry_after, bool ratelimit) {
  TestHubHeaders headers;
  if (retry_after >= 0) {
    headers.emplace_back("Retry-After", std::to_string(retry_after));
  }
  if (ratelimit) {
    headers.emplace_back(
        "RateLimit",
        "\"api\";r=0;t=" + std::to_string(std::max(retry_after, 1)));
    headers.emplace_back("RateLimit-Policy",
                         "\"fixed window\";\"api\";q=500;w=300");
  }
  return Status(429, std::move(headers),
                R"({"error":"We had to rate limit you."})");
}

TestHubFault TestHubFault::Reset(uint64_t after_bytes) {
  return Make(FaultKind::kReset, after_bytes);
}
TestHubFault TestHubFault::ShortBody(uint64_t after_bytes) {
  return Make(FaultKind::kClose, after_bytes);
}
TestHubFault TestHubFault::Hang(uint64_t after_bytes) {
  return Make(FaultKind::kHang, after_bytes);
}
TestHubFault TestHubFault::NoAnswer() { return Make(FaultKind::kNoAnswer); }
TestHubFault TestHubFault::LongBody(uint64_t extra_bytes) {
  return Make(FaultKind::kLongBody, extra_bytes);
}
TestHubFault TestHubFault::Overrun(uint64_t extra_bytes) {
  return Make(FaultKind::kOverrun, extra_bytes);
}
TestHubFault TestHubFault::WrongRangeStart(uint64_t shift) {
  return Make(FaultKind::kRangeStart, shift);
}
TestHubFault TestHubFault::WrongRangeTotal(uint64_t total) {
  return Make(FaultKind::kRangeTotal, total);
}
TestHubFault TestHubFault::IgnoreRange() {
  return Make(FaultKind::kIgnoreRange);
}

TestHubFault TestHubFault::SetHeader(std::string name, std::string value) {
  TestHubFault fault = Make(FaultKind::kSetHeader, 0, std::move(name));
  fault.value = std::move(value);
  return fault;
}
TestHubFault TestHubFault::DropHeader(std::string name) {
  return Make(FaultKind::kDropHeader, 0, std::move(name));
}

TestHubFault TestHubFault::WrongEtag(std::string etag) {
  TestHubFault fault = Make(FaultKind::kSetHeader);
  fault.headers = {{"ETag", "\"" + etag + "\""},
                   {"X-Linked-Etag", "\"" + etag + "\""}};
  return fault;
}
TestHubFault TestHubFault::WrongLinkedSize(uint64_t size) {
  TestHubFault fault = Make(FaultKind::kSetHeader);
  fault.headers = {{"X-Linked-Size", std::to_string(size)}};
  return fault;
}

TestHubFault TestHubFault::Trickle(uint64_t bytes,
                                   std::chrono::milliseconds every) {
  TestHubFault fault = Make(FaultKind::kTrickle, bytes);
  fault.delay = every;
  return fault;
}
TestHubFault TestHubFault::Delay(std::chrono::milliseconds delay) {
  TestHubFault fault = Make(FaultKind::kDelay);
  fault.delay = delay;
  return fault;
}

TestHubFault TestHubFault::RefuseSignature() {
  return Status(403, {{"Content-Type", "application/xml"}},
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>"
                "<Error><Code>AccessDenied</Code>"
                "<Message>Access denied</Message></Error>")
      .AtCdn();
}
TestHubFault TestHubFault::RedirectLoop() {
  return Make(FaultKind::kRedirect, 302);
}
TestHubFault TestHubFault::Redirect(std::string url, int status) {
  return Make(FaultKind::kRedirect, static_cast<uint64_t>(status),
              std::move(url));
}
TestHubFault TestHubFault::Gzip() { return Make(FaultKind::kGzip); }
TestHubFault TestHubFault::Body(std::string body) {
  return Make(FaultKind::kBody, 0, std::move(body));
}
TestHubFault TestHubFault::FlipBit(uint64_t file_offset) {
  return Make(FaultKind::kFlipBit, file_offset);
}
TestHubFault TestHubFault::OtherFile() { return Make(FaultKind::kOtherFile); }
TestHubFault TestHubFault::AddHeader(std::string name, std::string value) {
  TestHubFault fault = Make(FaultKind::kAddHeader, 0, std::move(name));
  fault.value = std::move(value);
  return fault;
}
TestHubFault TestHubFault::Raw(std::string bytes) {
  return Make(FaultKind::kRaw, 0, std::move(bytes));
}
TestHubFault TestHubFault::Call(
    std::function<void(const TestHubRequest&)> callback) {
  TestHubFault fault = Make(FaultKind::kRunCallback);
  fault.callback = std::move(callback);
  return fault;
}

TestHubFault TestHubFault::AtHub() const {
  TestHubFault fault = *this;
  fault.filter.listener = TestHubListener::kHub;
  return fault;
}
TestHubFault TestHubFault::AtCdn() const {
  TestHubFault fault = *this;
  fault.filter.listener = TestHubListener::kCdn;
  return fault;
}
TestHubFault TestHubFault::On(std::string contains) const {
  TestHubFault fault = *this;
  fault.filter.contains = std::move(contains);
  return fault;
}
TestHubFault TestHubFault::Method(std::string method) const {
  TestHubFault fault = *this;
  fault.filter.method = std::move(method);
  return fault;
}
TestHubFault TestHubFault::If(
    std::function<bool(const TestHubRequest&)> matches) const {
  TestHubFault fault = *this;
  fault.predicate = std::move(matches);
  return fault;
}
TestHubFault TestHubFault::Skip(uint64_t matches) const {
  TestHubFault fault = *this;
  fault.skip = matches;
  return fault;
}
TestHubFault TestHubFault::Times(uint64_t matches) const {
  TestHubFault fault = *this;
  fault.times = matches;
  return fault;
}

bool TestHubFault::Selects(const TestHubRequest& request) const {
  if (!filter.Matches(request)) return false;
  if (kind == Kind::kFlipBit && !AsksFor(request.range, number)) return false;
  return !predicate || predicate(request);
}

std::string_view ToString(TestHubFault::Kind kind) {
  for (const auto& [value, name] : kNames) {
    if (value == kind) return name;
  }
  return "?";
}

std::optional<TestHubFault::Kind> ParseTestHubFaultKind(std::string_view name) {
  for (const auto& [value, text] : kNames) {
    if (text == name) return value;
  }
  return std::nullopt;
}

std::vector<std::string_view> TestHubFaultKindNames() {
  std::vector<std::string_view> names;
  for (const auto& [value, name] : kNames) names.push_back(name);
  return names;
}

}  // namespace weightfs
