#include "tools/source.h"

#include <algorithm>

#include "formats/text.h"

namespace weightfs {
namespace {

constexpr size_t kMaxRepoId = 96;
constexpr size_t kMaxRevision = 255;

bool IsLocalPath(std::string_view text) {
  return text == "." || text == ".." || text.starts_with('/') ||
         text.starts_with("./") || text.starts_with("../");
}

bool IsIdByte(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
         (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
}

Result<> CheckSupported(std::string_view text) {
  for (const std::string_view kind : {"datasets/", "spaces/", "kernels/"}) {
    if (text.starts_with(kind)) {
      return MakeError(Code::kUnsupported,
                       "{}: {} are not supported in this version; name a model "
                       "as org/name",
                       text, kind.substr(0, kind.size() - 1));
    }
  }
  for (const std::string_view scheme : {"http://", "https://"}) {
    if (text.starts_with(scheme)) {
      return MakeError(Code::kUnsupported,
                       "HTTP folders are not supported in this version; for a "
                       "mirror of the Hub give org/name and --endpoint URL");
    }
  }
  if (text == "hub") {
    return MakeError(Code::kUnsupported,
                     "mounting the whole hub is not supported in this version; "
                     "name a model as org/name");
  }
  return {};
}

}  // namespace

Result<> CheckRepoId(std::string_view id) {
  const auto invalid = [&](std::string_view why) {
    return MakeError(Code::kInvalid,
                     "{} is no repository id ({}); give org/name, or a local "
                     "path that starts with / or ./",
                     QuoteName(id), why);
  };
  if (id.empty()) return invalid("it is empty");
  if (id.size() > kMaxRepoId) return invalid("longer than 96 bytes");
  if (std::count(id.begin(), id.end(), '/') > 1) {
    return invalid("more than one /");
  }
  if (!std::all_of(id.begin(), id.end(),
                   [](char c) { return IsIdByte(c) || c == '/'; })) {
    return invalid("only letters, digits, -, _ and . are allowed");
  }
  if (id.find("--") != id.npos || id.find("..") != id.npos) {
    return invalid("-- and .. are not allowed");
  }
  if (id.ends_with(".git")) return invalid("it ends with .git");
  const size_t slash = id.find('/');
  const std::string_view name = slash == id.npos ? id : id.substr(slash + 1);
  const std::string_view org = slash == id.npos ? name : id.substr(0, slash);
  for (const std::string_view part : {org, name}) {
    if (part.empty()) return invalid("a part is empty");
    for (const char c : {part.front(), part.back()}) {
      if (c == '-' || c == '.') {
        return invalid("a part starts or ends with - or .");
      }
    }
  }
  return {};
}

Result<Source> ParseSource(std::string_view text) {
  Source source;
  source.text = text;
  if (IsLocalPath(text)) {
    source.kind = Source::Kind::kLocal;
    source.path = text;
    if (text.find('\0') != text.npos) {
      return Error(Code::kInvalid, "the path holds a NUL byte");
    }
    return source;
  }
  if (text.starts_with("hf://")) text.remove_prefix(5);
  RETURN_IF_ERROR(CheckSupported(text));
  const size_t at = text.find('@');
  source.repo = text.substr(0, at);
  RETURN_IF_ERROR(CheckRepoId(source.repo));
  if (at == text.npos) return source;
  source.revision = text.substr(at + 1);
  const bool clean =
      std::all_of(source.revision.begin(), source.revision.end(), [](char c) {
        const auto byte = static_cast<unsigned char>(c);
        return byte > 0x20 && byte != 0x7f;
      });
  if (source.revision.empty() || source.revision.size() > kMaxRevision ||
      !clean || !IsUtf8(source.revision)) {
    return MakeError(Code::kInvalid,
                     "{} is no revision; give a branch, a tag or a commit "
                     "after the @",
                     QuoteName(source.revision));
  }
  return source;
}

}  // namespace weightfs
