// Error: why an operation failed, as a code that programs act on and a message
// that a person reads. Values are immutable but for AddContext and safe to copy
// between threads.
//
// A message names the file, the field or the byte range, and never holds a
// token or a signed URL.

#ifndef WEIGHTFS_FORMATS_BASE_ERROR_H_
#define WEIGHTFS_FORMATS_BASE_ERROR_H_

#include <chrono>
#include <optional>
#include <string>
#include <string_view>

namespace weightfs {

// What a caller can do about a failure.
enum class Code {
  kNotFound,     // no such file, tensor, repository or revision
  kCorrupt,      // bytes that break the format or do not match their hash
  kUnsupported,  // well-formed, and weightfs does not do it
  kInvalid,      // the caller's argument is wrong
  kIo,           // the local disk or the kernel failed
  kDenied,       // no permission: gated, private, bad token, EACCES
  kUnavailable,  // the origin or the network failed; a retry may help
  kOffline,      // not cached, and the origin may not be asked
  kNoSpace,      // disk or memory budget full
  kStale,        // the source changed after it was opened
  kCancelled,    // the caller gave up, or the process is shutting down
};

// "NotFound", "Corrupt", …: stable, for logs and --json.
std::string_view CodeName(Code code);

class [[nodiscard]] Error {
 public:
  Error(Code code, std::string message)
      : code_(code), message_(std::move(message)) {}

  Code code() const { return code_; }
  // The innermost message behind its contexts: "outer: inner".
  const std::string& message() const { return message_; }
  // "Corrupt: outer: inner".
  std::string ToString() const;

  // Puts `context` and ": " before the message.
  Error& AddContext(std::string_view context) &;
  Error&& AddContext(std::string_view context) &&;

  // The least time to wait before a retry, where the origin named one.
  std::optional<std::chrono::milliseconds> retry_after() const {
    return retry_after_;
  }
  Error&& WithRetryAfter(std::chrono::milliseconds wait) &&;

  // True for the echo of a failure that a log line was written for already.
  bool told_before() const { return told_before_; }
  Error&& ToldBefore() &&;

 private:
  Code code_;
  std::string message_;
  std::optional<std::chrono::milliseconds> retry_after_;
  bool told_before_ = false;
};

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_BASE_ERROR_H_
