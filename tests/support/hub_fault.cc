#include "tests/support/hub_fault.h"

#include <strings.h>

#include <algorithm>
#include <array>

namespace weightfs {
namespace {

using Kind = TestHubFault::Kind;

constexpr std::array<std::pair<Kind, std::string_view>, 22> kNames = {{
    {Kind::kStatus, "status"},
    {Kind::kReset, "reset"},
    {Kind::kClose, "close"},
    {Kind::kHang, "hang"},
    {Kind::kNoAnswer, "no_answer"},
    {Kind::kLongBody, "long_body"},
    {Kind::kOverrun, "overrun"},
    {Kind::kRangeStart, "range_start"},
    {Kind::kRangeTotal, "range_total"},
    {Kind::kIgnoreRange, "ignore_range"},
    {Kind::kSetHeader, "set_header"},
    {Kind::kAddHeader, "add_header"},
    {Kind::kDropHeader, "drop_header"},
    {Kind::kTrickle, "trickle"},
    {Kind::kDelay, "delay"},
    {Kind::kRedirect, "redirect"},
    {Kind::kGzip, "gzip"},
    {Kind::kBody, "body"},
    {Kind::kFlipBit, "flip_bit"},
    {Kind::kOtherFile, "other_file"},
    {Kind::kRaw, "raw"},
    {Kind::kRunCallback, "callback"},
}};

TestHubFault Make(Kind kind, uint64_t number = 0, std::string text = "") {
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
      Make(Kind::kStatus, static_cast<uint64_t>(status), std::move(body));
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
  return Make(Kind::kReset, after_bytes);
}
TestHubFault TestHubFault::ShortBody(uint64_t after_bytes) {
  return Make(Kind::kClose, after_bytes);
}
TestHubFault TestHubFault::Hang(uint64_t after_bytes) {
  return Make(Kind::kHang, after_bytes);
}
TestHubFault TestHubFault::NoAnswer() { return Make(Kind::kNoAnswer); }
TestHubFault TestHubFault::LongBody(uint64_t extra_bytes) {
  return Make(Kind::kLongBody, extra_bytes);
}
TestHubFault TestHubFault::Overrun(uint64_t extra_bytes) {
  return Make(Kind::kOverrun, extra_bytes);
}
TestHubFault TestHubFault::WrongRangeStart(uint64_t shift) {
  return Make(Kind::kRangeStart, shift);
}
TestHubFault TestHubFault::WrongRangeTotal(uint64_t total) {
  return Make(Kind::kRangeTotal, total);
}
TestHubFault TestHubFault::IgnoreRange() { return Make(Kind::kIgnoreRange); }

TestHubFault TestHubFault::SetHeader(std::string name, std::string value) {
  TestHubFault fault = Make(Kind::kSetHeader, 0, std::move(name));
  fault.value = std::move(value);
  return fault;
}
TestHubFault TestHubFault::DropHeader(std::string name) {
  return Make(Kind::kDropHeader, 0, std::move(name));
}

TestHubFault TestHubFault::WrongEtag(std::string etag) {
  TestHubFault fault = Make(Kind::kSetHeader);
  fault.headers = {{"ETag", "\"" + etag + "\""},
                   {"X-Linked-Etag", "\"" + etag + "\""}};
  return fault;
}
TestHubFault TestHubFault::WrongLinkedSize(uint64_t size) {
  TestHubFault fault = Make(Kind::kSetHeader);
  fault.headers = {{"X-Linked-Size", std::to_string(size)}};
  return fault;
}

TestHubFault TestHubFault::Trickle(uint64_t bytes,
                                   std::chrono::milliseconds every) {
  TestHubFault fault = Make(Kind::kTrickle, bytes);
  fault.delay = every;
  return fault;
}
TestHubFault TestHubFault::Delay(std::chrono::milliseconds delay) {
  TestHubFault fault = Make(Kind::kDelay);
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
TestHubFault TestHubFault::RedirectLoop() { return Make(Kind::kRedirect, 302); }
TestHubFault TestHubFault::Redirect(std::string url, int status) {
  return Make(Kind::kRedirect, static_cast<uint64_t>(status), std::move(url));
}
TestHubFault TestHubFault::Gzip() { return Make(Kind::kGzip); }
TestHubFault TestHubFault::Body(std::string body) {
  return Make(Kind::kBody, 0, std::move(body));
}
TestHubFault TestHubFault::FlipBit(uint64_t file_offset) {
  return Make(Kind::kFlipBit, file_offset);
}
TestHubFault TestHubFault::OtherFile() { return Make(Kind::kOtherFile); }
TestHubFault TestHubFault::AddHeader(std::string name, std::string value) {
  TestHubFault fault = Make(Kind::kAddHeader, 0, std::move(name));
  fault.value = std::move(value);
  return fault;
}
TestHubFault TestHubFault::Raw(std::string bytes) {
  return Make(Kind::kRaw, 0, std::move(bytes));
}
TestHubFault TestHubFault::Call(
    std::function<void(const TestHubRequest&)> callback) {
  TestHubFault fault = Make(Kind::kRunCallback);
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
  return filter.Matches(request) && (!predicate || predicate(request));
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
