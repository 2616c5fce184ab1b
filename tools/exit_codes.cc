#include "tools/exit_codes.h"

namespace weightfs {

int ExitCodeFor(Code code) {
  switch (code) {
    case Code::kInvalid:
      return kExitUsage;
    case Code::kNotFound:
      return kExitNotFound;
    case Code::kDenied:
      return kExitDenied;
    case Code::kUnavailable:
    case Code::kOffline:
      return kExitUnavailable;
    case Code::kCorrupt:
      return kExitCorrupt;
    case Code::kUnsupported:
      return kExitUnsupported;
    case Code::kIo:
    case Code::kNoSpace:
    case Code::kStale:
    case Code::kCancelled:
      return kExitFailure;
  }
  return kExitFailure;
}

}  // namespace weightfs
