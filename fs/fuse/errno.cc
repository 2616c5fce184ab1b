#include "fs/fuse/errno.h"

#include <cerrno>

namespace weightfs {

int ToErrno(Code code) {
  switch (code) {
    case Code::kNotFound:
      return ENOENT;
    case Code::kInvalid:
      return EINVAL;
    case Code::kDenied:
      return EACCES;
    case Code::kCancelled:
      return EINTR;
    // A reader can do nothing about the difference; the log line tells it.
    case Code::kCorrupt:
    case Code::kIo:
    case Code::kUnavailable:
    case Code::kOffline:
    case Code::kNoSpace:
    case Code::kStale:
    case Code::kUnsupported:
      return EIO;
  }
  return EIO;
}

}  // namespace weightfs
