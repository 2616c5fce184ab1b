#include "formats/base/error.h"

#include <utility>

namespace weightfs {

std::string_view CodeName(Code code) {
  switch (code) {
    case Code::kNotFound:
      return "NotFound";
    case Code::kCorrupt:
      return "Corrupt";
    case Code::kUnsupported:
      return "Unsupported";
    case Code::kInvalid:
      return "Invalid";
    case Code::kIo:
      return "Io";
    case Code::kDenied:
      return "Denied";
    case Code::kUnavailable:
      return "Unavailable";
    case Code::kOffline:
      return "Offline";
    case Code::kNoSpace:
      return "NoSpace";
    case Code::kStale:
      return "Stale";
    case Code::kCancelled:
      return "Cancelled";
  }
  return "Unknown";
}

std::string Error::ToString() const {
  return std::string(CodeName(code_)) + ": " + message_;
}

Error& Error::AddContext(std::string_view context) & {
  message_.insert(0, ": ").insert(0, context);
  return *this;
}

Error&& Error::AddContext(std::string_view context) && {
  AddContext(context);
  return std::move(*this);
}

Error&& Error::WithRetryAfter(std::chrono::milliseconds wait) && {
  retry_after_ = wait;
  return std::move(*this);
}

Error&& Error::ToldBefore() && {
  told_before_ = true;
  return std::move(*this);
}

}  // namespace weightfs
