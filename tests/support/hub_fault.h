// The test hub's request log, and the faults that tests plug into it.
//
// Faults are values: a selector (which requests) and one misbehaviour.
//   hub.AddFault(TestHubFault::Status(503).AtCdn().On("model.safetensors")
//                    .Skip(1).Times(2));
// All faults that match a request apply to it, in the order they were added.

#ifndef WEIGHTFS_TESTS_SUPPORT_HUB_FAULT_H_
#define WEIGHTFS_TESTS_SUPPORT_HUB_FAULT_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace weightfs {

enum class TestHubListener { kAny, kHub, kCdn };

using TestHubHeaders = std::vector<std::pair<std::string, std::string>>;

struct TestHubRequest {
  uint64_t id = 0;          // 1, 2, … in order of arrival
  uint64_t connection = 0;  // of this hub, never reused
  int64_t unix_ms = 0;
  std::chrono::steady_clock::time_point arrived;
  TestHubListener listener = TestHubListener::kAny;
  std::string method;
  std::string path;   // as sent, still percent-encoded
  std::string query;  // without "?"; at the CDN with its signature
  std::string repo;   // "org/name" (or "datasets/…"), if it names one
  std::string file;   // path in the repo, at resolve and at the CDN
  std::string range;  // the Range header's value
  std::string authorization;
  TestHubHeaders headers;   // as received
  int status = 0;           // 0: not answered (yet)
  uint64_t body_bytes = 0;  // handed to the socket
  bool done = false;
  std::string fault;  // kinds of the faults that applied, comma-separated
  std::string Header(std::string_view name) const;  // "" if absent
};

// Selects log entries. Empty fields match everything.
struct TestHubFilter {
  TestHubListener listener = TestHubListener::kAny;
  std::string method = {};
  std::string contains = {};  // in `path`, or in `file`
  int status = 0;
  bool Matches(const TestHubRequest& request) const;
};

class TestHubFault {
 public:
  enum class Kind {
    kStatus,       // answers `number` with `headers` and `text`
    kReset,        // RST after `number` body bytes
    kClose,        // orderly close after `number` body bytes: a short body
    kHang,         // stops after `number` body bytes, connection open
    kNoAnswer,     // reads the request and never answers
    kLongBody,     // `number` bytes more than asked, Content-Length true
    kOverrun,      // `number` bytes more than Content-Length says
    kRangeStart,   // Content-Range starts `number` bytes later than the body
    kRangeTotal,   // Content-Range's total is `number`
    kIgnoreRange,  // 200 and the whole file
    kSetHeader,    // `text`: `value`; `headers` only where there are such
    kAddHeader,    // `text`: `value`, beside those of that name
    kDropHeader,   // `text`
    kTrickle,      // `number` bytes every `delay`
    kDelay,        // `delay` before the answer
    kRedirect,     // `number` to the URL `text`, in which "{id}" becomes the
                   // request's number; empty: to itself
    kGzip,         // the body gzipped, Content-Encoding: gzip
    kBody,         // `text` as the body, status and type kept
    kFlipBit,      // lowest bit of the file's byte at offset `number`, of
                   // answers that hold it
    kOtherFile,    // every byte inverted, and an ETag of its own
    kRaw,          // `text` instead of any HTTP answer, then close; {first},
                   // {last}, {size}, {length} and {body} are what the answer
                   // would hold; a byte every `delay` if that is not 0
    kRunCallback,  // calls `callback` before the answer
  };

  static TestHubFault Status(int status, TestHubHeaders headers = {},
                             std::string body = "");
  // 429; seconds < 0: no Retry-After. `ratelimit` adds the RateLimit headers.
  static TestHubFault RateLimited(int retry_after, bool ratelimit = false);
  static TestHubFault Reset(uint64_t after_bytes);
  static TestHubFault ShortBody(uint64_t after_bytes);
  static TestHubFault Hang(uint64_t after_bytes);  // TestHub::ReleaseHangs ends
  static TestHubFault NoAnswer();                  // it, and then goes on
  static TestHubFault LongBody(uint64_t extra_bytes);
  static TestHubFault Overrun(uint64_t extra_bytes);
  static TestHubFault WrongRangeStart(uint64_t shift);
  static TestHubFault WrongRangeTotal(uint64_t total);
  static TestHubFault IgnoreRange();
  static TestHubFault SetHeader(std::string name, std::string value);
  static TestHubFault DropHeader(std::string name);
  // Of the final answer (ETag) and of the redirect (X-Linked-Etag).
  static TestHubFault WrongEtag(std::string etag);
  static TestHubFault WrongLinkedSize(uint64_t size);
  static TestHubFault Trickle(uint64_t bytes, std::chrono::milliseconds every);
  static TestHubFault Delay(std::chrono::milliseconds delay);
  static TestHubFault RefuseSignature();  // 403 as the CDN says it
  static TestHubFault RedirectLoop();
  static TestHubFault Redirect(std::string url, int status = 302);
  static TestHubFault Gzip();
  static TestHubFault Body(std::string body);  // garbage JSON, for one
  static TestHubFault FlipBit(uint64_t file_offset);
  static TestHubFault OtherFile();
  static TestHubFault AddHeader(std::string name, std::string value);
  static TestHubFault Raw(std::string bytes);
  static TestHubFault Call(std::function<void(const TestHubRequest&)> callback);

  TestHubFault AtHub() const;
  TestHubFault AtCdn() const;
  TestHubFault On(std::string contains) const;  // in the URL's path or file
  TestHubFault Method(std::string method) const;
  TestHubFault If(std::function<bool(const TestHubRequest&)> matches) const;
  TestHubFault Skip(uint64_t matches) const;  // spares the first ones
  TestHubFault Times(uint64_t matches) const;

  bool Selects(const TestHubRequest& request) const;

  // Read by the hub and by the control endpoint; tests use the verbs above.
  Kind kind = Kind::kStatus;
  TestHubFilter filter;
  std::function<bool(const TestHubRequest&)> predicate;
  uint64_t skip = 0;
  uint64_t times = std::numeric_limits<uint64_t>::max();
  uint64_t number = 0;
  std::string text;
  std::string value;
  TestHubHeaders headers;
  std::chrono::milliseconds delay{0};
  std::function<void(const TestHubRequest&)> callback;
};

std::string_view ToString(TestHubFault::Kind kind);
std::optional<TestHubFault::Kind> ParseTestHubFaultKind(std::string_view name);
std::vector<std::string_view> TestHubFaultKindNames();

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_SUPPORT_HUB_FAULT_H_
