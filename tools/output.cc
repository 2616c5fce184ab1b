#include "tools/output.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <system_error>
#include <utility>

#include "tools/commands.h"
#include "tools/exit_codes.h"

namespace weightfs {
namespace {

Error SystemError(std::string_view what, const std::string& path, int error) {
  Code code = Code::kIo;
  if (error == ENOSPC || error == EDQUOT) code = Code::kNoSpace;
  if (error == EACCES || error == EPERM) code = Code::kDenied;
  if (error == EPIPE) code = Code::kCancelled;
  return MakeError(code, "{} {}: {}", path, what,
                   std::generic_category().message(error));
}

}  // namespace

Result<> WriteAll(int fd, std::span<const std::byte> bytes) {
  constexpr size_t kMostAtOnce = 1 << 30;
  while (!bytes.empty()) {
    const ssize_t n =
        ::write(fd, bytes.data(), std::min(bytes.size(), kMostAtOnce));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return SystemError("cannot be written", "the output", errno);
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  return {};
}

int PrintOut(std::string_view text) {
  auto written = WriteAll(STDOUT_FILENO, std::as_bytes(std::span(text)));
  return written.has_value() ? static_cast<int>(kExitOk)
                             : ReportError(written.error());
}

void EndByBrokenPipe() {
  std::signal(SIGPIPE, SIG_DFL);
  std::raise(SIGPIPE);
  std::_Exit(kExitSignal + SIGPIPE);
}

Result<OutputFile> OutputFile::Create(const std::string& path) {
  OutputFile file;
  file.path_ = path;
  struct stat attr {};
  const bool exists = ::stat(path.c_str(), &attr) == 0;
  if (exists && S_ISDIR(attr.st_mode)) {
    return MakeError(Code::kInvalid, "{} is a folder", path);
  }
  if (exists && !S_ISREG(attr.st_mode)) {
    file.fd_.Reset(::open(path.c_str(), O_WRONLY | O_CLOEXEC | O_NOCTTY));
    if (!file.fd_.valid()) {
      return SystemError("cannot be opened", path, errno);
    }
    return file;
  }
  std::string temporary = path + ".XXXXXX";
  file.fd_.Reset(::mkostemp(temporary.data(), O_CLOEXEC));
  if (!file.fd_.valid()) return SystemError("cannot be made", path, errno);
  file.temporary_ = std::move(temporary);
  const mode_t mask = ::umask(0);
  ::umask(mask);
  ::fchmod(file.fd_.get(), exists ? attr.st_mode & 0777 : 0666 & ~mask);
  return file;
}

OutputFile::~OutputFile() {
  if (fd_.valid() && !temporary_.empty()) ::unlink(temporary_.c_str());
}

Result<> OutputFile::Commit() {
  if (temporary_.empty()) return {};
  if (::fsync(fd_.get()) != 0 ||
      ::rename(temporary_.c_str(), path_.c_str()) != 0) {
    return SystemError("cannot be written", path_, errno);
  }
  temporary_.clear();
  return {};
}

}  // namespace weightfs
