// Catalog: the weight sets of a repository, found in its listing alone (no
// content is read). A set is the tensors that make one model: a file, or shards
// bound by an index or by -0000x-of-0000N, in one folder and one format.
//
// Immutable once made.

#ifndef WEIGHTFS_FS_CATALOG_H_
#define WEIGHTFS_FS_CATALOG_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "cache/origin.h"

namespace weightfs {

struct WeightSet {
  // The path of the file as if unsharded: "unet/model.fp16.safetensors". A
  // sharded set beside an unsharded file of that name has its index's path.
  std::string path;
  std::string folder;           // "" or "unet"
  std::vector<uint32_t> files;  // ordinals in Snapshot::files, in shard order
  std::optional<uint32_t> index_file;  // …index.json, in Snapshot::files
  std::vector<std::string> problems;   // "shard 2 of 3 is missing"
};

class Catalog {
 public:
  static Catalog Create(const Snapshot& snapshot);

  // Sorted by path.
  const std::vector<WeightSet>& sets() const { return sets_; }
  // Folder → its primary set: transformers' order, no variant first.
  const std::map<std::string, uint32_t>& primary() const { return primary_; }
  // What tensors/ shows, folder → set: the root folder's primary set, or, where
  // the root has none, each folder's under that folder's path.
  const std::map<std::string, uint32_t>& shown() const { return shown_; }
  // Weight files beyond kMaxSets, which are in repo/ only.
  size_t sets_left_out() const { return sets_left_out_; }

 private:
  std::vector<WeightSet> sets_;
  std::map<std::string, uint32_t> primary_;
  std::map<std::string, uint32_t> shown_;
  size_t sets_left_out_ = 0;
};

}  // namespace weightfs

#endif  // WEIGHTFS_FS_CATALOG_H_
