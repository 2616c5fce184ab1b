#include "fs/repo_tree.h"

namespace weightfs {

RepoTree::RepoTree(const Snapshot& snapshot) {
  // Collect the folders first, so that their ordinals are in path order.
  by_path_.emplace("", 0);
  for (const FileInfo& file : snapshot.files) {
    for (size_t slash = file.path.find('/'); slash != std::string::npos;
         slash = file.path.find('/', slash + 1)) {
      by_path_.emplace(file.path.substr(0, slash), 0);
    }
  }
  folders_.reserve(by_path_.size());
  for (auto& [path, ordinal] : by_path_) {
    ordinal = static_cast<uint32_t>(folders_.size());
    Folder folder;
    folder.path = path;
    if (!path.empty()) {
      const size_t slash = path.rfind('/');
      const std::string parent =
          slash == std::string::npos ? "" : path.substr(0, slash);
      const std::string name =
          slash == std::string::npos ? path : path.substr(slash + 1);
      // A parent sorts before its children, so it has its ordinal.
      folder.parent = by_path_.find(parent)->second;
      folders_[folder.parent].folders.emplace(name, ordinal);
    }
    folders_.push_back(std::move(folder));
  }
  for (uint32_t i = 0; i < snapshot.files.size(); ++i) {
    const std::string& path = snapshot.files[i].path;
    if (by_path_.count(path) != 0) continue;
    const size_t slash = path.rfind('/');
    const std::string folder =
        slash == std::string::npos ? "" : path.substr(0, slash);
    const std::string name =
        slash == std::string::npos ? path : path.substr(slash + 1);
    folders_[by_path_.find(folder)->second].files.emplace(name, i);
  }
}

std::optional<uint32_t> RepoTree::FindFolder(std::string_view path) const {
  auto it = by_path_.find(path);
  if (it == by_path_.end()) return std::nullopt;
  return it->second;
}

}  // namespace weightfs
