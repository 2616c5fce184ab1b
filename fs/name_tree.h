// NameTree: the folders that a set's tensor names make, with the names' escapes
// and clashes resolved (formats/view/path_name.h). Only folders are stored, so
// a set of 100,000 flat names costs 4 bytes a tensor.
//
// Immutable once made. Borrows the index.

#ifndef WEIGHTFS_FS_NAME_TREE_H_
#define WEIGHTFS_FS_NAME_TREE_H_

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "formats/tensor_index.h"
#include "formats/writer.h"

namespace weightfs {

class NameTree {
 public:
  struct Folder {
    uint32_t parent = 0;
    std::string component;  // as shown; "" for the top
    std::string prefix;  // of tensor names, raw, with its last '/'; "" at top
    std::vector<uint32_t> folders;  // ordinals, sorted by component
    std::vector<uint32_t> tensors;  // ordinals in the index, sorted by name
  };

  // `taken` are components that the top folder must not use (real folders shown
  // beside the tensors).
  NameTree(const TensorIndex& index, const std::set<std::string>& taken);

  // Folder 0 is the top. REQUIRES: ordinal < folder_count().
  const Folder& folder(uint32_t ordinal) const { return folders_[ordinal]; }
  size_t folder_count() const { return folders_.size(); }

  // The component that shows this tensor in `format`, extension included.
  std::string FileName(uint32_t tensor, Format format) const;
  // The tensor's path below the top, extension included.
  std::string FilePath(uint32_t tensor, Format format) const;
  // What `component` names in a folder. A folder wins over a file.
  std::optional<uint32_t> FindFolder(uint32_t folder,
                                     std::string_view component) const;
  std::optional<uint32_t> FindTensor(uint32_t folder,
                                     std::string_view component,
                                     Format format) const;

 private:
  // A name that has no place of its own, shown by its hash instead.
  struct Hashed {
    std::string component;  // without extension
    uint32_t formats = 0;   // in which formats, as bits 1 << Format
  };

  uint32_t AddFolder(uint32_t parent, std::string_view raw, std::string prefix,
                     const std::set<std::string>& taken);
  void AddTensors(const std::set<std::string>& taken);
  void ResolveClashes(const std::set<std::string>& taken);

  const TensorIndex& index_;
  std::vector<Folder> folders_;
  std::vector<uint32_t> folder_of_;              // tensor → folder
  std::unordered_map<uint32_t, Hashed> hashed_;  // by tensor
  // Folder and component (no extension) → tensor.
  std::map<std::pair<uint32_t, std::string>, uint32_t> by_hash_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_FS_NAME_TREE_H_
