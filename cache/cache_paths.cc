#include "cache/cache_paths.h"

#include <fmt/format.h>
#include <openssl/sha.h>

#include <algorithm>
#include <array>
#include <tuple>

namespace weightfs {
namespace {

constexpr size_t kMaxFileName = 200;  // of 255: temp names add to it

// The first `bytes` bytes of the text's SHA-256, in hex.
std::string HashHex(std::string_view text, size_t bytes) {
  std::array<unsigned char, SHA256_DIGEST_LENGTH> digest{};
  ::SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(),
           digest.data());
  std::string hex;
  for (size_t i = 0; i < bytes; ++i) hex += fmt::format("{:02x}", digest[i]);
  return hex;
}

bool StaysInFileName(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
         (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
}

}  // namespace

bool IsLowerHex(std::string_view text, size_t digits) {
  return text.size() == digits &&
         std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

std::string ShortHash(std::string_view text) { return HashHex(text, 8); }

uint64_t NamespaceNumber(std::string_view cache_namespace) {
  return std::stoull(ShortHash(cache_namespace), nullptr, 16);
}

std::string NamespacePath(std::string_view cache_namespace) {
  return fmt::format("{}/{}", kObjectsFolder, ShortHash(cache_namespace));
}

Result<std::string> ObjectPath(std::string_view cache_namespace,
                               const ContentId& id) {
  if (cache_namespace.empty()) {
    return Error(Code::kInvalid, "no namespace: this origin is not cached");
  }
  const bool sha256 = id.kind == ContentId::Kind::kSha256;
  if (!sha256 && id.kind != ContentId::Kind::kGit) {
    return Error(Code::kInvalid, "local files are not cached");
  }
  if (!IsLowerHex(id.value, sha256 ? 64 : 40)) {
    // The value may hold anything, so the message does not.
    return MakeError(Code::kInvalid, "not a {} id ({} bytes)",
                     sha256 ? "sha256" : "git", id.value.size());
  }
  return fmt::format("{}/{}", NamespacePath(cache_namespace), VerifiedPath(id));
}

std::string VerifiedPath(const ContentId& id) {
  return fmt::format("{}/{}/{}",
                     id.kind == ContentId::Kind::kSha256 ? "sha256" : "git",
                     id.value.substr(0, 2), id.value);
}

std::string ClaimedPath(uint64_t owner, std::string_view path) {
  return fmt::format("{}/{:016x}/{}", kObjectsFolder, owner, path);
}

Result<ContentId> IdOfPath(std::string_view path) {
  for (const auto& [kind, folder, digits] :
       {std::tuple{ContentId::Kind::kSha256, "sha256", 64},
        std::tuple{ContentId::Kind::kGit, "git", 40}}) {
    const size_t slash = path.rfind('/');
    if (slash == path.npos) break;
    const std::string_view value = path.substr(slash + 1);
    if (!IsLowerHex(value, static_cast<size_t>(digits))) continue;
    ContentId id{kind, std::string(value)};
    const std::string wanted = VerifiedPath(id);
    if (path == wanted || path.ends_with("/" + wanted)) return id;
  }
  return MakeError(Code::kInvalid, "{}: not an object's folder", path);
}

std::string FileNameFor(std::string_view text) {
  std::string name;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    // No hidden files, no "." or "..".
    if (StaysInFileName(c) && !(c == '.' && i == 0)) {
      name += c;
    } else {
      name += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
  }
  if (name.empty()) return "%";  // no escape is that short
  if (name.size() <= kMaxFileName) return name;
  const std::string ending = "%~" + HashHex(text, 16);
  return name.substr(0, kMaxFileName - ending.size()) + ending;
}

}  // namespace weightfs
