// RepoTree: the folders of a repository's listing. Immutable once made; borrows
// the snapshot.

#ifndef WEIGHTFS_FS_REPO_TREE_H_
#define WEIGHTFS_FS_REPO_TREE_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cache/origin.h"

namespace weightfs {

class RepoTree {
 public:
  struct Folder {
    std::string path;  // "" for the top
    uint32_t parent = 0;
    // Sorted by name.
    std::map<std::string, uint32_t, std::less<>> folders;
    std::map<std::string, uint32_t, std::less<>> files;  // ordinals in Snapshot
  };

  // A path that is both a file and a folder in the listing is a folder.
  explicit RepoTree(const Snapshot& snapshot);

  // Folder 0 is the top. Folders are in order of their paths.
  const std::vector<Folder>& folders() const { return folders_; }
  std::optional<uint32_t> FindFolder(std::string_view path) const;

 private:
  std::vector<Folder> folders_;
  std::map<std::string, uint32_t, std::less<>> by_path_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_FS_REPO_TREE_H_
