#include "cache/hub/token.h"

#include <fcntl.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <string_view>
#include <system_error>

#include "formats/base/log.h"
#include "formats/base/result.h"
#include "formats/base/unique_fd.h"

namespace weightfs {
namespace {

constexpr size_t kMaxTokenFile = 64 << 10;

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string() : std::string(value);
}

// As the Hub's clients read their switches.
bool IsTrue(const std::string& value) {
  for (const char* word : {"1", "ON", "YES", "TRUE"}) {
    if (strcasecmp(value.c_str(), word) == 0) return true;
  }
  return false;
}

std::string Trim(std::string_view text) {
  constexpr std::string_view kBlank = " \t\r\n";
  const size_t first = text.find_first_not_of(kBlank);
  if (first == std::string_view::npos) return "";
  return std::string(
      text.substr(first, text.find_last_not_of(kBlank) - first + 1));
}

std::string ExpandHome(const std::string& path) {
  if (path != "~" && !path.starts_with("~/")) return path;
  return Environment("HOME") + path.substr(1);
}

std::string DefaultTokenFile() {
  if (std::string path = Environment("HF_TOKEN_PATH"); !path.empty()) {
    return ExpandHome(path);
  }
  if (std::string home = Environment("HF_HOME"); !home.empty()) {
    return ExpandHome(home) + "/token";
  }
  if (std::string cache = Environment("XDG_CACHE_HOME"); !cache.empty()) {
    return ExpandHome(cache) + "/huggingface/token";
  }
  const std::string home = Environment("HOME");
  return home.empty() ? "" : home + "/.cache/huggingface/token";
}

Error ErrnoError(const std::string& path, int error) {
  const Code code = error == ENOENT ? Code::kNotFound : Code::kIo;
  return MakeError(code, "{}: {}", path,
                   std::generic_category().message(error));
}

Result<std::string> ReadTokenFile(const std::string& path) {
  // Neither waits for a FIFO's writer nor reads a device.
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) return ErrnoError(path, errno);
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return ErrnoError(path, errno);
  if (!S_ISREG(info.st_mode)) {
    return MakeError(Code::kIo, "{}: not a regular file", path);
  }
  std::string text;
  std::array<char, 4096> buffer;
  for (;;) {
    const ssize_t got = ::read(fd.get(), buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoError(path, errno);
    if (got == 0) return text;
    text.append(buffer.data(), static_cast<size_t>(got));
    if (text.size() > kMaxTokenFile) {
      return MakeError(Code::kIo, "{}: too long for a token", path);
    }
  }
}

}  // namespace

TokenProvider::TokenProvider(const std::string& token_file) {
  if (!token_file.empty()) {
    file_ = token_file;
    return;
  }
  if (IsTrue(Environment("HF_HUB_DISABLE_IMPLICIT_TOKEN"))) return;
  for (const char* name : {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}) {
    std::string value = Trim(Environment(name));
    if (value.empty()) continue;
    variable_ = name;
    value_ = std::move(value);
    return;
  }
  file_ = DefaultTokenFile();
}

std::optional<std::string> TokenProvider::Get() const {
  if (!variable_.empty()) return value_;
  if (file_.empty()) return std::nullopt;
  auto text = ReadTokenFile(file_);
  if (!text) {
    // Most people have no token; one that is there and unreadable is a mistake.
    if (!logged_.exchange(true)) {
      LogAt(text.error().code() == Code::kNotFound ? LogLevel::kInfo
                                                   : LogLevel::kWarning,
            "no access token can be read, going on without one; {}",
            text.error().message());
    }
    return std::nullopt;
  }
  std::string token = Trim(*text);
  if (token.empty()) return std::nullopt;
  return token;
}

std::string TokenProvider::Source() const {
  if (!variable_.empty()) return variable_;
  return file_.empty() ? "none" : file_;
}

}  // namespace weightfs
