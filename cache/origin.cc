#include "cache/origin.h"

#include <algorithm>

namespace weightfs {

std::string ContentId::ToString() const {
  switch (kind) {
    case Kind::kSha256:
      return "sha256:" + value;
    case Kind::kGit:
      return "git:" + value;
    case Kind::kStat:
      return "stat:" + value;
  }
  return value;
}

const FileInfo* Snapshot::Find(std::string_view path) const {
  auto it = std::lower_bound(
      files.begin(), files.end(), path,
      [](const FileInfo& file, std::string_view p) { return file.path < p; });
  return it != files.end() && it->path == path ? &*it : nullptr;
}

bool IsSafePath(std::string_view path) {
  if (path.find('\0') != std::string_view::npos) return false;
  for (size_t start = 0;;) {
    const size_t end = std::min(path.find('/', start), path.size());
    const std::string_view part = path.substr(start, end - start);
    if (part.empty() || part == "." || part == ".." || part.size() > 255) {
      return false;
    }
    if (end == path.size()) return true;
    start = end + 1;
  }
}

Result<FileInfo> Origin::Stat(const std::string& path) {
  ASSIGN_OR_RETURN(auto snapshot, List());
  if (const FileInfo* file = snapshot->Find(path)) return *file;
  return MakeError(Code::kNotFound, "{}: no file {} at {}", name(), path,
                   snapshot->commit);
}

}  // namespace weightfs
